"""Sets of layers as text and back: 0-based indices and half-open ranges."""

import re
from collections.abc import Sequence
from typing import Any

from lamina.errors import ConfigError

_PART = re.compile(r"(\d+)(?:-(\d+))?$")


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


def parse_layers(key: str, value: Any, num_layers: int) -> tuple[int, ...]:
    """Parse a set of layers into ascending 0-based indices.

    The value of the config key is an index, a half-open range A-B, or several of them as a list or
    separated by commas: 5, "5-11" (layers 5 to 10), [0, 1, "5-11"], "0,1,5-11".

    Raises:
        ConfigError: A part is neither, lies outside the model, or repeats a layer.
    """
    items = value if isinstance(value, list | tuple) else [value]
    given = f"[{','.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)
    found: list[int] = []
    for part in (part.strip() for item in items for part in str(item).split(",")):
        match = _PART.match(part)
        if match is None:
            raise ConfigError(
                f"{key}={given}: {part!r} is neither a 0-based layer index nor a half-open range "
                "such as 5-11 (layers 5 to 10)"
            )
        start = int(match[1])
        end = int(match[2]) if match[2] else start + 1
        if not start < end <= num_layers:
            raise ConfigError(
                f"{key}={given}: {part} lies outside of the model's {num_layers} layers: indices "
                f"are 0 to {num_layers - 1}, ranges half-open (0-{num_layers} is all)"
            )
        found += range(start, end)
    if not found:
        raise ConfigError(f"{key}={given}: names no layer")
    if repeated := [index for index in found if found.count(index) > 1]:
        raise ConfigError(f"{key}={given}: layer {repeated[0]} is named more than once")
    return tuple(sorted(found))
