"""Secrets: environment variables whose values must never reach a file or a folder's name."""

import os
import re
from collections.abc import Iterator, Mapping

from omegaconf import OmegaConf

from lamina.errors import ConfigError

NAMES = re.compile(r"KEY|TOKEN(?!IZERS)|SECRET|PASSWORD", re.IGNORECASE)
"""What the name of such a variable contains."""

SHORTEST = 8
"""Characters of a value that is looked for; shorter ones stand in many innocent texts."""


def is_secret(name: str) -> bool:
    """Whether a variable of this name holds a secret."""
    return NAMES.search(name) is not None


def secrets() -> dict[str, str]:
    """Return the environment's secrets by name."""
    return {n: v for n, v in os.environ.items() if len(v) >= SHORTEST and is_secret(n)}


def held(text: str, known: Mapping[str, str]) -> str | None:
    """Return the name of the secret whose value a text contains, or nothing."""
    return next((name for name, value in known.items() if value in text), None)


def forbidden_names(text: str) -> Iterator[str]:
    """Return the secrets that a text's interpolations ask the environment for by name."""
    for match in re.finditer(r"oc\.env:[\s\"']*([\w.-]+)", text):
        if is_secret(match[1]):
            yield match[1]


def guard_environment() -> None:
    """Let `${oc.env:NAME}` refuse secrets, however the name came about."""
    OmegaConf.register_new_resolver("oc.env", _environment, replace=True)


def _environment(name: str, default: str | None = "???") -> str | None:
    """The resolver itself.

    Raises:
        ConfigError: The variable holds a secret, or is not set and there is no default.
    """
    if is_secret(name):
        raise ConfigError(f"refers to the secret {name}; keys stay in the environment or in .env")
    if name not in os.environ and default == "???":
        raise ConfigError(f"the environment has no {name}")
    return os.environ.get(name, default)
