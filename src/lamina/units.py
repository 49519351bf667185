"""Numbers as people write them: 16k tokens, 8GB."""

import re
from typing import Any

from lamina.errors import ConfigError

COUNT_SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}
BYTE_SUFFIXES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)")


def count(key: str, value: Any) -> int:
    """Read a number of tokens: 4096, 16k, 1.6M.

    Raises:
        ConfigError: The value of the config key is no such number, or below 1.
    """
    return _read(key, value, COUNT_SUFFIXES, "4096, 16k or 1.6M")


def size(key: str, value: Any) -> int:
    """Read a number of bytes: 500MB, 8GB; powers of ten.

    Raises:
        ConfigError: The value of the config key is no such number, or below 1.
    """
    return _read(key, value, BYTE_SUFFIXES, "500MB or 8GB")


def sized(size: int) -> str:
    """Return a number of bytes for people, in GB or MB."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def _read(key: str, value: Any, suffixes: dict[str, int], examples: str) -> int:
    match = _NUMBER.fullmatch(str(value))
    number = float(match[1]) * suffixes.get(match[2], 0) if match else 0
    if number < 1:
        raise ConfigError(f"{key}={value}: give a number such as {examples}")
    return round(number)


def time_split(seconds: dict[str, float]) -> str:
    """Format the phases of a training as whole percents of its time, leaving out those of 0%."""
    total = sum(seconds.values())
    shares = {name.replace("_", "+"): taken / total for name, taken in seconds.items()}
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share >= 0.005)
