"""Checks every config file that Hydra reads before its YAML is."""

from functools import wraps
from pathlib import Path

from hydra._internal.config_repository import ConfigRepository
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lamina.errors import ConfigError, reason_of
from lamina.runtime.yaml_text import refuse_unreadable


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
        except RecursionError as error:
            raise ConfigError(f"conf file {config_path}: nested too deeply") from error
        except OmegaConfBaseException as error:
            reason = f"{reason_of(error)}: write keys as text"
            raise ConfigError(f"conf file {config_path}: {reason}") from error
        except ValueError as error:
            raise ConfigError(f"conf file {config_path}: {error}") from error
        return found

    ConfigRepository.load_config = _load
