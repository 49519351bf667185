"""Checks every composed config before Hydra acts on it: no secrets, no foreign code.

Hydra creates folders, writes the config and instantiates its launcher, callbacks and log handlers
before a command sees the config; a hostile experiment file could abuse any of these.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.errors import ConfigCompositionException, HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

from lamina.errors import ConfigError

SECRET_NAMES = re.compile(r"KEY|TOKEN(?!IZERS)|SECRET|PASSWORD", re.IGNORECASE)
"""Names of environment variables whose values must never reach a file or a folder name."""

SHORTEST_SECRET = 8
"""Characters; shorter values occur in innocent texts and are not searched for."""

SECRET_ADVICE = "keys stay in the environment or in .env, and are never written"

ALLOWED_TARGETS = (
    "lamina.",
    "trl.",
    "peft.",
    "transformers.",
    "torch.optim.",
    "torch.utils.tensorboard.",
)
"""Prefixes of what a config may instantiate."""

HYDRA_TARGETS = ("hydra.", "hydra_plugins.", "lamina.")
"""Prefixes of what Hydra may instantiate as its launcher, sweeper and callbacks."""

RESOLVERS = ("hydra", "now", "oc.env", "asset")
"""Resolvers allowed below hydra; others could build nodes that escape the checks."""

CALLED = re.compile(r"\$\{\s*([^}:]*):")
"""The resolver of an interpolation."""

LOGGING_CLASSES = ("logging.", "colorlog.")


def install() -> None:
    """Check every config that Hydra composes, and let `${oc.env:NAME}` refuse secrets."""
    OmegaConf.register_new_resolver("oc.env", _environment, replace=True)
    load = ConfigLoaderImpl.load_configuration
    if not hasattr(load, "__wrapped__"):
        ConfigLoaderImpl.load_configuration = _watched(load)


def _watched(load: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    refused: list[tuple[ConfigLoaderImpl, list[str], HydraException]] = []

    @wraps(load)
    def _load(self: ConfigLoaderImpl, *, overrides: list[str], **options: Any) -> DictConfig:
        # Hydra 1.3.8 composes once to see whether it is a sweep, and swallows that error.
        given = [each for each in overrides if not each.startswith("hydra.mode=")]
        for loader, earlier, error in refused:
            if loader is self and earlier == given:
                raise error
        try:
            config = load(self, overrides=overrides, **options)
        except HydraException as error:
            refused.append((self, given, error))
            raise
        # Hydra 1.3.8 raises these for an option that is not a name, such as adapter=null.
        except (TypeError, ValueError) as error:
            raise ConfigCompositionException(str(error)) from error
        refuse_unsafe(config)
        _expand_home(config)
        return config

    return _load


def _expand_home(node: DictConfig | ListConfig) -> None:
    """Expand ~ in every value, in place: Hydra and other libraries would create a folder ~."""
    for key in node if isinstance(node, DictConfig) else range(len(node)):
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
            continue
        value = node[key]
        if isinstance(value, (DictConfig, ListConfig)):
            _expand_home(value)
        elif isinstance(value, str) and (value == "~" or value.startswith("~/")):
            node[key] = str(Path(value).expanduser())


def refuse_unsafe(config: DictConfig) -> None:
    """Raise a ConfigError if a config holds a secret, or foreign code below its hydra node."""
    content = OmegaConf.to_container(config, resolve=False)
    if found := dict.fromkeys(_problems(content)):
        raise ConfigError("\n".join(found))


def _problems(content: Any) -> Iterator[str]:
    known = _secrets()
    for path, value in _strings(content, ""):
        yield from _secret_problems(value, path, "a key of the config", known)
        for name in re.findall(r"oc\.env:[\s\"']*([\w.-]+)", value):
            if _is_secret(name):
                yield f"{path}: refers to the secret {name}; {SECRET_ADVICE}"
    hydra = content.get("hydra") or {}
    if isinstance(verbose := hydra.get("verbose"), dict):
        yield f"hydra.verbose={verbose}: use true, false, or a list of loggers' names"
    yield from _foreign_code(hydra)


def refusal(target: Any, allowed: tuple[str, ...]) -> str | None:
    """Say why a config may not instantiate a dotted path, or return None.

    A path can leave its package through a module that the package imports (lamina.x.os.system), so
    the object that it leads to must be the package's own.
    """
    if not str(target).startswith(allowed):
        return f"not allowed; targets begin with {', '.join(allowed)}"
    try:
        found = get_object(target)
    except (ImportError, ValueError):
        return "there is no such class or function"
    if not f"{getattr(found, '__module__', '')}.".startswith(allowed) or not callable(found):
        return "not allowed; it is not one of that package's own classes or functions"
    return None


def argument_problems(arguments: Sequence[str]) -> Iterator[str]:
    """Name command-line arguments that hold a secret; Hydra would write them to a file."""
    known = _secrets()
    for argument in arguments:
        yield from _secret_problems(argument, argument.partition("=")[0], "an argument", known)


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


def _foreign_code(hydra: dict[str, Any]) -> Iterator[str]:
    for key, value in _strings(hydra, "hydra."):
        name = key.rpartition(".")[2]
        if name == value:
            continue  # a key
        logged = key.startswith(("hydra.job_logging.", "hydra.hydra_logging."))
        if name == "_target_" and (reason := refusal(value, HYDRA_TARGETS)):
            yield f"{key}={value}: {reason}"
        elif logged and name in ("()", "class") and not value.startswith(LOGGING_CLASSES):
            yield f"{key}={value}: not allowed; log handlers must be those of Python's logging"
        elif logged and "ext://" in value and value not in ("ext://sys.stdout", "ext://sys.stderr"):
            yield f"{key}={value}: not allowed; use ext://sys.stdout or ext://sys.stderr"
        elif called := [name for name in CALLED.findall(value) if name not in RESOLVERS]:
            name = called[0] or "a resolver"
            yield f"{key}={value}: not allowed; interpolations below hydra must not call {name}"
        elif key.startswith(("hydra.callbacks.", "hydra.launcher.", "hydra.sweeper.")) and (
            re.search(r"\$\{(?!hydra[.:]|now:|oc\.env:)", value)
        ):
            yield f"{key}={value}: not allowed; use the value itself"


def _is_secret(name: str) -> bool:
    return SECRET_NAMES.search(name) is not None


def _secrets() -> dict[str, str]:
    return {n: v for n, v in os.environ.items() if len(v) >= SHORTEST_SECRET and _is_secret(n)}


def _secret_problems(
    text: str, key: str, placeholder: str, known: Mapping[str, str]
) -> Iterator[str]:
    """Report a secret in a text under its key, or a placeholder if the key holds one as well."""
    name = next((name for name, secret in known.items() if secret in text), None)
    if name is not None:
        shown = placeholder if any(secret in key for secret in known.values()) else key
        yield f"{shown}: holds the value of {name}; {SECRET_ADVICE}"


def _environment(name: str, default: str | None = "???") -> str | None:
    """Resolve `${oc.env:NAME}`, where NAME may itself be interpolated; refuse secrets."""
    if _is_secret(name):
        raise ConfigError(f"refers to the secret {name}; {SECRET_ADVICE}")
    if name not in os.environ and default == "???":
        raise ConfigError(f"the environment variable {name} is not set")
    return os.environ.get(name, default)
