"""Sets of layers as text and back: 0-based indices and half-open ranges."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from lamina.errors import ConfigError

_PART = re.compile(r"(\d+)(?:-(\d+))?$")


def half_open_ranges(kept_layers: Sequence[int]) -> list[list[int]]:
    """Write ascending indices as half-open ranges: (0, 1, 4) becomes [[0, 2], [4, 5]]."""
    ranges: list[list[int]] = []
    for index in kept_layers:
        if ranges and ranges[-1][1] == index:
            ranges[-1][1] = index + 1
        else:
            ranges.append([index, index + 1])
    return ranges


def shown(kept_layers: Sequence[int]) -> str:
    """Write ascending indices for a person: (0, 1, 4) becomes '[0, 2), [4, 5)'."""
    return ", ".join(f"[{start}, {end})" for start, end in half_open_ranges(kept_layers))


def indices(key: str, value: Any, num_layers: int) -> tuple[int, ...]:
    """Read a set of layers.

    Args:
        key: Config key that an error names.
        value: An index, a half-open range A-B, or several of them in a list or separated by commas:
            5, "5-11" (layers 5 to 10), [0, 1, "5-11"], "0,1,5-11".
        num_layers: Depth of the model.

    Returns:
        The 0-based indices, ascending.

    Raises:
        ConfigError: A part is neither, lies outside the model, or names a layer a second time.
    """
    found: list[int] = []
    for part in _parts(value):
        match = _PART.match(part)
        if match is None:
            raise ConfigError(
                f"{key}={_written(value)}: {part!r} is neither a 0-based layer index nor a "
                "half-open range such as 5-11 (layers 5 to 10)"
            )
        start = int(match[1])
        end = int(match[2]) if match[2] else start + 1
        if not start < end <= num_layers:
            raise ConfigError(
                f"{key}={_written(value)}: {part} lies outside of the model's {num_layers} layers: "
                f"indices are 0 to {num_layers - 1}, ranges half-open (0-{num_layers} is all)"
            )
        found += range(start, end)
    if not found:
        raise ConfigError(f"{key}={_written(value)}: names no layer")
    if twice := [index for index in found if found.count(index) > 1]:
        raise ConfigError(f"{key}={_written(value)}: layer {twice[0]} is named more than once")
    return tuple(sorted(found))


def _parts(value: Any) -> list[str]:
    items: Iterable[Any] = value if isinstance(value, list | tuple) else [value]
    return [part.strip() for item in items for part in str(item).split(",")]


def _written(value: Any) -> str:
    """A list the way it is given on the command line."""
    return f"[{','.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)
