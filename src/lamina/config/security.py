"""Guards on every composed config before Hydra acts on it: no secrets, no foreign code.

Hydra creates folders, writes the config and instantiates its launcher, callbacks and log handlers
before a command sees the config; a hostile experiment file could do harm in any of them.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.errors import ConfigCompositionException, HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from lamina.errors import ConfigError, joined

SECRET_NAMES = re.compile(r"KEY|TOKEN(?!IZERS)|SECRET|PASSWORD", re.IGNORECASE)
"""Names of environment variables whose values must never reach a file or a folder's name."""

SHORTEST_SECRET = 8
"""Characters of a value that is searched for; shorter ones occur in many innocent texts."""

KEPT = "keys stay in the environment or in .env, and are never written"

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
"""Prefixes of what Hydra may instantiate: its launcher, sweeper and callbacks."""

RESOLVERS = ("hydra", "now", "oc.env", "asset")
"""What interpolations below hydra may call; others could build a node that nobody checks."""

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
    def watched(self: ConfigLoaderImpl, *, overrides: list[str], **options: Any) -> DictConfig:
        # Hydra 1.3.8 composes once to see whether it is a sweep, and swallows the error.
        asked = [each for each in overrides if not each.startswith("hydra.mode=")]
        for loader, given, error in refused:
            if loader is self and given == asked:
                raise error
        try:
            config = load(self, overrides=overrides, **options)
        except HydraException as error:
            refused.append((self, asked, error))
            raise
        # Hydra 1.3.8 raises these for a group's choice that is not a name, such as adapter=null.
        except (TypeError, ValueError) as error:
            raise ConfigCompositionException(str(error)) from error
        look_at(config)
        return config

    return watched


def look_at(config: DictConfig) -> None:
    """Check a composed config, its hydra node included.

    Raises:
        ConfigError: It holds a secret, or names foreign code below hydra.
    """
    content = OmegaConf.to_container(config, resolve=False)
    if found := list(dict.fromkeys(problems(content))):
        raise ConfigError(joined(found))


def problems(content: Any) -> Iterator[str]:
    """Name secrets anywhere in a composed config, and foreign code below hydra.

    Args:
        content: Of the config with its hydra node, interpolations unresolved.
    """
    known = _secrets()
    for path, value in _strings(content, ""):
        if name := _held(value, known):
            shown = path if _held(path, known) is None else "a key of the config"
            yield f"{shown}: holds the value of {name}; {KEPT}"
        for name in _secrets_referred_to(value):
            yield f"{path}: refers to the secret {name}; {KEPT}"
    yield from _foreign(content.get("hydra") or {}, "hydra.")


def refusal(target: Any, allowed: tuple[str, ...]) -> str | None:
    """Say why a config may not instantiate something, or return nothing.

    A dotted path can leave its package through a module that the package imports
    (lamina.x.os.system), so the object that it leads to must be the package's own.

    Args:
        target: Dotted path.
        allowed: Prefixes.
    """
    if not str(target).startswith(allowed):
        return f"not allowed; targets begin with {', '.join(allowed)}"
    try:
        found = get_object(target)
    except (ImportError, ValueError):
        return "there is no such class or function"
    if not f"{getattr(found, '__module__', '')}.".startswith(allowed) or not callable(found):
        return "not allowed; it is not a class or function of that package's own"
    return None


def argument_problems(arguments: Sequence[str]) -> Iterator[str]:
    """Name command-line arguments that hold a secret: Hydra writes them to a file."""
    known = _secrets()
    for argument in arguments:
        if name := _held(argument, known):
            key = argument.partition("=")[0]
            shown = key if _held(key, known) is None else "an argument"
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


def _is_secret(name: str) -> bool:
    return SECRET_NAMES.search(name) is not None


def _secrets() -> dict[str, str]:
    return {n: v for n, v in os.environ.items() if len(v) >= SHORTEST_SECRET and _is_secret(n)}


def _held(text: str, known: Mapping[str, str]) -> str | None:
    """The name of the secret whose value a text contains."""
    return next((name for name, value in known.items() if value in text), None)


def _secrets_referred_to(text: str) -> Iterator[str]:
    """The secrets that a text's interpolations read from the environment."""
    for match in re.finditer(r"oc\.env:[\s\"']*([\w.-]+)", text):
        if _is_secret(match[1]):
            yield match[1]


def _environment(name: str, default: str | None = "???") -> str | None:
    """Resolve `${oc.env:NAME}`, however the name came about.

    Raises:
        ConfigError: The variable holds a secret, or is not set and there is no default.
    """
    if _is_secret(name):
        raise ConfigError(f"refers to the secret {name}; keys stay in the environment or in .env")
    if name not in os.environ and default == "???":
        raise ConfigError(f"the environment has no {name}")
    return os.environ.get(name, default)
