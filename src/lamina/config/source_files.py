"""How Hydra reads config files: each is checked before its YAML is, and a run composes once."""

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lamina.errors import ConfigError, reason_of
from lamina.runtime.yaml_text import refuse_unreadable


def install() -> None:
    """Check every config file that Hydra reads, and compose a run's config once."""
    load = ConfigRepository.load_config
    if hasattr(load, "__wrapped__"):
        return
    compose = ConfigLoaderImpl.load_configuration
    ConfigLoaderImpl.load_configuration = wraps(compose)(_once(compose))

    @wraps(load)
    def _load(self: ConfigRepository, config_path: str) -> ConfigResult | None:
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        try:
            if source is not None and source.scheme() == "file":
                refuse_unreadable(Path(source.path, source._normalize_file_name(config_path)))
            found = load(self, config_path)
            if found is not None and not isinstance(found.config, DictConfig):
                raise ValueError("expected a mapping of keys to values")
        except RecursionError as error:
            raise ConfigError(f"conf file {config_path}: nested too deeply") from error
        except OmegaConfBaseException as error:
            reason = f"{reason_of(error)}: write keys as text"
            raise ConfigError(f"conf file {config_path}: {reason}") from error
        except ValueError as error:
            raise ConfigError(f"conf file {config_path}: {error}") from error
        return found

    ConfigRepository.load_config = _load


def _once(compose: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    """Use the config that Hydra 1.3.8 composes to see whether it is a sweep, if it is none."""
    composed: list[tuple[ConfigLoaderImpl, list[str], DictConfig]] = []

    def _compose(
        self: ConfigLoaderImpl, *, overrides: list[str], run_mode: RunMode, **options: Any
    ) -> DictConfig:
        for loader, earlier, config in composed:
            if loader is self and [*earlier, "hydra.mode=RUN"] == overrides:
                composed.clear()
                config.hydra.mode = RunMode.RUN
                config.hydra.overrides.hydra.append(overrides[-1])
                return config
        may_sweep = {"--multirun", "-m"} & {*sys.argv} or any({*o} & {*",("} for o in overrides)
        is_trial = not options.get("validate_sweep_overrides", True) and not may_sweep
        mode = RunMode.RUN if is_trial else run_mode
        config = compose(self, overrides=overrides, run_mode=mode, **options)
        if is_trial:
            composed.append((self, [*overrides], config))
        return config

    return _compose
