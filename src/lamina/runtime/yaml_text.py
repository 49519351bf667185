"""The text of a YAML file: a few bytes can expand to more than memory holds."""

from contextlib import suppress
from pathlib import Path

import yaml

LARGEST_FILE = 100_000
"""Bytes of the largest config file."""

MOST_VALUES = 5_000
"""Values of a config file, counted again wherever an alias repeats them; Hydra takes a second."""

DEEPEST = 50
"""Mappings and lists within each other; OmegaConf exhausts Python's stack at about 100."""

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # by far the faster, where it is built


def refuse_unreadable(path: Path) -> None:
    """Raise a ValueError if a file is a pipe, too large or not UTF-8, or expands too far."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError("not a regular file")
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"larger than {LARGEST_FILE:,} bytes")
    _refuse_expanding(path.read_text(encoding="utf-8"))


def _refuse_expanding(text: str) -> None:
    """Raise a ValueError if a text has too many values, counting those that aliases repeat."""
    counted: dict[str | None, int] = {}
    opened: list[tuple[str | None, int]] = []
    count = 0
    with suppress(yaml.YAMLError):  # which the real reader reports
        for event in yaml.parse(text, LOADER):
            if isinstance(event, yaml.CollectionStartEvent):
                counted[event.anchor] = MOST_VALUES  # until its values are counted
                opened.append((event.anchor, count))
                count += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, before = opened.pop()
                counted[anchor] = count - before
            elif isinstance(event, yaml.AliasEvent):
                count += counted.get(event.anchor, 1)
            elif isinstance(event, yaml.ScalarEvent):
                count += 1
            if len(opened) > DEEPEST:
                raise ValueError("nested too deeply")
            if count > MOST_VALUES:
                repeated = "with those that aliases (*NAME) repeat"
                raise ValueError(f"more than {MOST_VALUES:,} values, {repeated}")
