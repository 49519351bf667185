"""Refuses settings that a library, or a backend that patches it, changed before the trainer."""

import json
from collections.abc import Mapping
from enum import Enum
from typing import Any

from lamina.errors import ConfigError

BOOLEANS = {"include_num_input_tokens_seen": {True: "all", False: "no"}}
"""Fields in which transformers replaces true and false by words."""


def refuse_changed(path: str, given: Mapping[str, Any], used: Any) -> None:
    """Raise a ConfigError that names each setting which is not as given.

    A null leaves the choice to the library. JSON strings are compared by content; where a mapping
    becomes a settings object, only the given keys are compared. `path` is the prefix of the
    settings' config keys, with its final dot; `used` is the library's settings object.
    """
    changed = []
    for key, value in given.items():
        found = getattr(used, key, None)
        word = BOOLEANS[key][value] if key in BOOLEANS and isinstance(value, bool) else value
        if value is not None and not _same(word, found):
            changed.append(
                f"{path}{key}={value}, but a library changed it to {_plain(found)}: set "
                f"{path}{key}={_plain(found)} if that is intended"
            )
    if changed:
        raise ConfigError("\n".join(changed))


def _same(given: Any, used: Any) -> bool:
    if isinstance(used, (set, frozenset)) and isinstance(given, list):
        return set(given) == used
    given, used = _plain(given), _plain(used)
    if isinstance(given, str) and isinstance(used, dict) and given.startswith("{"):
        given = json.loads(given)
    if isinstance(given, str) and isinstance(used, list):
        given = given.split()
    if isinstance(used, dict) and isinstance(given, dict):
        return all(key in used and _same(value, used[key]) for key, value in given.items())
    return bool(given == used)


def _plain(value: Any) -> Any:
    """Return a value as a config has it: enumerations by value, sets as sorted lists."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return dict(vars(value))
    return value
