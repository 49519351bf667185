"""Config files, checked before YAML is read: a few bytes can expand to more than memory holds."""

from functools import wraps
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_repository import ConfigRepository
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig

from lamina.errors import ConfigError

LARGEST_FILE = 1_000_000
"""Bytes of the largest config file."""

MOST_VALUES = 10_000
"""Values of a config file, counted again wherever an alias repeats them."""


def install() -> None:
    """Check every config file that Hydra reads."""
    load = ConfigRepository.load_config
    if hasattr(load, "__wrapped__"):
        return

    @wraps(load)
    def _load(self: ConfigRepository, config_path: str) -> ConfigResult | None:
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        try:
            if source is not None and source.scheme() == "file":
                refuse_unreadable(Path(source.path, source._normalize_file_name(config_path)))
            found = load(self, config_path)
            if found is not None and not isinstance(found.config, DictConfig):
                raise ValueError("expected a mapping of keys to values")
        except (RecursionError, ValueError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else error
            raise ConfigError(f"conf file {config_path}: {reason}") from error
        return found

    ConfigRepository.load_config = _load


def refuse_unreadable(path: Path) -> None:
    """Raise a ValueError if a file is too large, is not UTF-8, or its aliases expand too far."""
    if path.is_file():
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"larger than {LARGEST_FILE:,} bytes")
        text = path.read_text(encoding="utf-8")
        if "&" in text and "*" in text and _values(yaml.compose(text), {}) > MOST_VALUES:
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
