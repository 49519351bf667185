"""Looks at every composed config before Hydra acts on it: no secrets, no foreign code.

Hydra makes folders, writes the config and instantiates its launcher, callbacks and log handlers
before a command sees the config; a hostile experiment file could do harm in any of them.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf

from lamina.config.secrets import forbidden_names, guard_environment, held, secrets
from lamina.config.targets import HYDRA_TARGETS, refusal
from lamina.errors import ConfigError, joined

RESOLVERS = ("hydra", "now", "oc.env", "asset")
"""What interpolations below hydra may call; others could build a node that is not looked at."""

LOGGING_CLASSES = ("logging.", "colorlog.")


def install() -> None:
    """Let every composition pass `problems`, and every look into the environment be watched."""
    guard_environment()
    load = ConfigLoaderImpl.load_configuration
    if not hasattr(load, "__wrapped__"):
        ConfigLoaderImpl.load_configuration = _watched(load)


def _watched(load: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    refused: list[tuple[ConfigLoaderImpl, list[str], HydraException]] = []

    @wraps(load)
    def watched(self: ConfigLoaderImpl, *, overrides: list[str], **options: Any) -> DictConfig:
        # Hydra 1.3.8 composes once to see whether it is a sweep, and forgets what it found wrong.
        asked = [each for each in overrides if not each.startswith("hydra.mode=")]
        for loader, given, error in refused:
            if loader is self and given == asked:
                raise error
        try:
            config = load(self, overrides=overrides, **options)
        except HydraException as error:
            refused.append((self, asked, error))
            raise
        # What Hydra 1.3.8 raises for a group's choice that is no name, such as adapter=null.
        except (TypeError, ValueError) as error:
            raise ConfigCompositionException(str(error)) from error
        look_at(config)
        return config

    return watched


def look_at(config: DictConfig) -> None:
    """Look at a composed config with its hydra node.

    Raises:
        ConfigError: It holds a secret, or names foreign code below hydra.
    """
    content = OmegaConf.to_container(config, resolve=False)
    if found := list(dict.fromkeys(problems(content))):
        raise ConfigError(joined(found))


def problems(content: Any) -> Iterator[str]:
    """Name secrets anywhere in a composed config, and foreign code below hydra.

    Args:
        content: Of the config with its hydra node, interpolations not resolved.
    """
    known = secrets()
    for path, value in _strings(content, ""):
        if name := held(value, known):
            shown = path if held(path, known) is None else "a key of the config"
            yield f"{shown}: holds the value of {name}; {KEPT}"
        for name in forbidden_names(value):
            yield f"{path}: refers to the secret {name}; {KEPT}"
    yield from _foreign(content.get("hydra") or {}, "hydra.")


KEPT = "keys stay in the environment or in .env, and are never written"


def argument_problems(arguments: Sequence[str]) -> Iterator[str]:
    """Name arguments of the command line that hold a secret: Hydra writes them down.

    Args:
        arguments: The command line's.
    """
    known = secrets()
    for argument in arguments:
        if name := held(argument, known):
            key = argument.partition("=")[0]
            shown = key if held(key, known) is None else "an argument"
            yield f"{shown}: holds the value of {name}; {KEPT}"


def _strings(node: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{path}{key}", str(key)
            yield from _strings(value, f"{path}{key}.")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _strings(value, f"{path}{index}.")
    elif node is not None:
        yield path.rstrip("."), str(node)


def _foreign(hydra: dict[str, Any], path: str) -> Iterator[str]:
    for key, value in _strings(hydra, path):
        name = key.rpartition(".")[2]
        if name == value:
            continue  # a key
        logged = key.startswith(("hydra.job_logging.", "hydra.hydra_logging."))
        if name == "_target_" and (said := refusal(value, HYDRA_TARGETS)):
            yield f"{key}={value}: {said}"
        elif logged and name in ("()", "class") and not value.startswith(LOGGING_CLASSES):
            yield f"{key}={value}: not allowed; log handlers are those of Python's logging"
        elif logged and "ext://" in value and value not in ("ext://sys.stdout", "ext://sys.stderr"):
            yield f"{key}={value}: not allowed; give ext://sys.stdout or ext://sys.stderr"
        elif (called := _called(value)) and key.startswith("hydra."):
            yield f"{key}={value}: not allowed; below hydra no interpolation calls {called}"
        elif key.startswith(("hydra.callbacks.", "hydra.launcher.", "hydra.sweeper.")) and (
            re.search(r"\$\{(?!hydra[.:]|now:|oc\.env:)", value)
        ):
            yield f"{key}={value}: not allowed; give the value itself"


def _called(value: str) -> str | None:
    """The first resolver in a text that may not stand below hydra."""
    for match in re.finditer(r"\$\{\s*([^}:]*):", value):
        if match[1] not in RESOLVERS:
            return match[1] or "a resolver"
    return None
