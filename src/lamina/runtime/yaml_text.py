"""The text of a YAML file: a few bytes can expand to more than memory holds."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

LARGEST_FILE = 1_000_000
"""Bytes of the largest config file."""

MOST_VALUES = 10_000
"""Values of a config file, counted again wherever an alias repeats them."""


def refuse_unreadable(path: Path) -> None:
    """Raise a ValueError if a file is a pipe, too large or not UTF-8, or expands too far."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError("not a regular file")
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"larger than {LARGEST_FILE:,} bytes")
    text, count = path.read_text(encoding="utf-8"), 0
    if "&" in text and "*" in text:
        with suppress(yaml.YAMLError):  # which the real reader reports
            count = _values(yaml.compose(text), {})
    if count > MOST_VALUES:
        raise ValueError(f"its aliases (*NAME) repeat more than {MOST_VALUES:,} values")


def _values(node: Any, counted: dict[int, int]) -> int:
    """Count a node's values; one within itself has no end."""
    if id(node) not in counted:
        counted[id(node)] = MOST_VALUES + 1  # until its values are counted
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        inside = (
            node.value if isinstance(node, yaml.SequenceNode) else [n for p in pairs for n in p]
        )
        counted[id(node)] = 1 + sum(_values(each, counted) for each in inside)
    return counted[id(node)]
