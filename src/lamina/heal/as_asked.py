"""What was asked for is what the trainer got: compared once it is built."""

import json
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

from lamina.errors import ConfigError, joined

BOOLEANS = {"include_num_input_tokens_seen": {True: "all", False: "no"}}
"""Fields in which transformers writes true and false as words."""


def refuse_changes(path: str, asked: Mapping[str, Any], got: Any) -> None:
    """Compare each setting with what a library made of it.

    TRL, transformers and PEFT change some settings on the way, and so does whoever patches them.
    A null leaves the choice to the library. JSON in a text is what it says, and of a mapping, of
    which the library makes a settings object, the keys that were given count.

    Args:
        path: Of the settings in the config, with a dot at its end.
        asked: The settings by the names of `got`.
        got: The library's settings object that is in use.

    Raises:
        ConfigError: One differs; it names the key, what was asked and what was got.
    """
    if differing := list(_differing(path, asked, got)):
        raise ConfigError(joined(differing))


def _differing(path: str, asked: Mapping[str, Any], got: Any) -> Iterator[str]:
    for key, value in asked.items():
        found = getattr(got, key, None)
        if value is not None and not _same(_word(key, value), found):
            yield (
                f"{path}{key}={value} was asked for, but the trainer got {_plain(found)}: a "
                f"library changed it; give {path}{key}={_plain(found)} if that is meant"
            )


def _word(key: str, value: Any) -> Any:
    return BOOLEANS[key][value] if key in BOOLEANS and isinstance(value, bool) else value


def _same(asked: Any, got: Any) -> bool:
    if isinstance(got, (set, frozenset)) and isinstance(asked, list):
        return set(asked) == got
    asked, got = _plain(asked), _plain(got)
    if isinstance(asked, str) and isinstance(got, dict) and asked.startswith("{"):
        asked = json.loads(asked)
    if isinstance(asked, str) and isinstance(got, list):
        asked = asked.split()
    if isinstance(got, dict) and isinstance(asked, dict):
        return all(key in got and _same(value, got[key]) for key, value in asked.items())
    return bool(asked == got)


def _plain(value: Any) -> Any:
    """A value as it stands in a config: enumerations by value, sets as sorted lists."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return dict(vars(value))
    return value
