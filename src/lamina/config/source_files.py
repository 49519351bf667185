"""How Hydra reads config files: each is checked before its YAML is, and a run composes once."""

import sys
from functools import wraps
from pathlib import Path
from typing import Any

from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lamina.errors import naming, reason_of
from lamina.runtime.yaml_text import refuse_unreadable


def install() -> None:
    """Check every config file that Hydra reads, and compose a run's config once."""
    load = ConfigRepository.load_config
    if hasattr(load, "__wrapped__"):
        return
    Hydra.get_mode = wraps(Hydra.get_mode)(_mode)

    @wraps(load)
    def _load(self: ConfigRepository, config_path: str) -> ConfigResult | None:
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        with naming(f"conf file {config_path}", ValueError):
            if source is not None and source.scheme() == "file":
                refuse_unreadable(Path(source.path, source._normalize_file_name(config_path)))
            try:
                found = load(self, config_path)
            except OmegaConfBaseException as error:
                raise ValueError(f"{reason_of(error)}: write keys as text") from error
            if found is not None and not isinstance(found.config, DictConfig):
                raise ValueError("expected a mapping of keys to values")
            return found

    ConfigRepository.load_config = _load


def _mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
    """Compose a config and return its mode; what cannot be a sweep is not composed again.

    Hydra 1.3.8 composes twice, and swallows the errors of the first time.
    """
    may_sweep = {"--multirun", "-m"} & {*sys.argv} or any({*o} & {*",("} for o in overrides)
    mode = RunMode.MULTIRUN if may_sweep else RunMode.RUN
    config = self.compose_config(config_name, overrides, mode, validate_sweep_overrides=False)
    if not may_sweep and config.hydra.mode != RunMode.MULTIRUN:
        self.config_loader.load_configuration = lambda **_: config
    return config.hydra.mode
