"""Sets of layers as text and back: 0-based indices and half-open ranges."""

import re
from collections.abc import Sequence
from typing import Any

from lamina.errors import ConfigError

_ENTRY = re.compile(r"(\d+)(?:-(\d+))?$")


def half_open_ranges(kept_layers: Sequence[int]) -> list[list[int]]:
    """Turn ascending indices into half-open ranges: (0, 1, 4) becomes [[0, 2], [4, 5]]."""
    ranges: list[list[int]] = []
    for index in kept_layers:
        if ranges and ranges[-1][1] == index:
            ranges[-1][1] = index + 1
        else:
            ranges.append([index, index + 1])
    return ranges


def format_layers(kept_layers: Sequence[int]) -> str:
    """Format ascending indices: (0, 1, 4) becomes '[0, 2), [4, 5)'."""
    return ", ".join(f"[{start}, {end})" for start, end in half_open_ranges(kept_layers))


def as_given(value: Any) -> str:
    """Format the value of a config key that takes a set of layers, for messages."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(str, value))}]"
    return str(value) or "''"


def split_entries(value: Any) -> list[str]:
    """Split the value of such a key: one entry, or several as a list or separated by commas."""
    items = value if isinstance(value, list | tuple) else [] if value is None else [value]
    return [part.strip() for item in items for part in str(item).split(",")]


def parse_entry(setting: str, entry: str, num_layers: int) -> range:
    """Parse a 0-based index or a half-open range; `setting` is KEY=VALUE, for messages.

    Raises ConfigError if it is neither, or lies outside the model.
    """
    match = _ENTRY.match(entry)
    if match is None:
        raise ConfigError(
            f"{setting}: {entry!r} is neither a 0-based layer index nor a half-open range such as "
            "5-11 (layers 5 to 10)"
        )
    start = int(match[1])
    end = int(match[2]) if match[2] else start + 1
    if not start < end <= num_layers:
        raise ConfigError(
            f"{setting}: {entry} lies outside of the model's {num_layers} layers: indices are 0 to "
            f"{num_layers - 1}, ranges half-open (0-{num_layers} is all)"
        )
    return range(start, end)


def parse_layers(key: str, value: Any, num_layers: int) -> tuple[int, ...]:
    """Parse a set of layers into ascending 0-based indices.

    The value of the config key is an index, a half-open range A-B, or several of them as a list or
    separated by commas: 5, "5-11" (layers 5 to 10), [0, 1, "5-11"], "0,1,5-11". Raises ConfigError
    if an entry is neither, lies outside the model, or repeats a layer.
    """
    setting = f"{key}={as_given(value)}"
    entries = split_entries(value)
    found = [index for entry in entries for index in parse_entry(setting, entry, num_layers)]
    if not found:
        raise ConfigError(f"{setting}: names no layer")
    if repeated := [index for index in found if found.count(index) > 1]:
        raise ConfigError(f"{setting}: layer {repeated[0]} is named more than once")
    return tuple(sorted(found))
