"""Parses and formats numbers as people write them: 16k tokens, 6e9 parameters, 8GB."""

import re
from math import inf
from typing import Any

from lamina.errors import ConfigError

COUNT_SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
BYTE_SUFFIXES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
BYTE_SUFFIXES |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

_NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:[eE]\+?\d+)?)\s*([a-zA-Z]*)")


def parse_tokens(key: str, value: Any) -> int:
    """Parse a config key's number of tokens: 4096, 16k, 1.6M; at least 1."""
    return _parse(key, value, COUNT_SUFFIXES, "4096, 16k or 1.6M")


def parse_parameters(key: str, value: Any) -> int:
    """Parse a config key's number of weights: 6e9, 6B; at least 1."""
    return _parse(key, value, COUNT_SUFFIXES, "6e9 or 6B")


def parse_bytes(key: str, value: Any) -> int:
    """Parse a config key's number of bytes: 500MB, 8GB (powers of ten), 8GiB; at least 1."""
    return _parse(key, value, BYTE_SUFFIXES, "500MB, 8GB or 8GiB")


def format_count(number: float) -> str:
    """Format a number of weights with three digits: 5.93e9."""
    return re.sub(r"e\+0*", "e", f"{number:.3g}")


def format_bytes(size: int) -> str:
    """Format a number of bytes in GB or MB."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def format_duration(seconds: float) -> str:
    """Format seconds as hours and minutes, minutes or seconds."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{rest} s"


def _parse(key: str, value: Any, suffixes: dict[str, int], examples: str) -> int:
    match = _NUMBER.fullmatch(str(value))
    number = float(match[1]) * suffixes.get(match[2], 0) if match else 0
    if not 1 <= number < inf:
        raise ConfigError(f"{key}={value}: use a number such as {examples}")
    return round(number)


def format_time_split(seconds: dict[str, float]) -> str:
    """Format the phases of a training as percentages of its time, without those below 0.5 %."""
    total = sum(seconds.values())
    shares = {name.replace("_", "+"): taken / total for name, taken in seconds.items()}
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share >= 0.005)
