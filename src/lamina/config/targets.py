"""What a config may instantiate, and the arguments that it takes."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from hydra.utils import get_object

from lamina.errors import nearest

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
"""Prefixes of what Hydra may: its launcher, sweeper and callbacks."""


def problems(node: Any, path: str = "") -> Iterator[str]:
    """Name targets off the allow-list, and arguments that targets do not take or miss.

    Args:
        node: Content of a resolved config.
        path: Of the node, with a dot at its end.
    """
    if isinstance(node, list):
        for index, item in enumerate(node):
            yield from problems(item, f"{path}{index}.")
    elif isinstance(node, dict):
        target = node.get("_target_", "???")
        if target != "???":
            refused = refusal(target, ALLOWED_TARGETS)
            if refused is not None:
                yield f"{path}_target_={target}: {refused}"
                return
            yield from _arguments(get_object(target), node, path)
        for key, value in node.items():
            yield from problems(value, f"{path}{key}.")


def refusal(target: Any, allowed: tuple[str, ...]) -> str | None:
    """Say why something may not be instantiated, or return nothing.

    A dotted path may leave its package by a module that the package imports (lamina.x.os.system),
    so what is found there must be the package's own.

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


def _arguments(target: Callable[..., Any], node: dict[str, Any], path: str) -> Iterator[str]:
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # some classes in C have none
        return
    given = [key for key in node if not key.startswith("_")]
    kinds = {parameter.kind for parameter in parameters.values()}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        for key in given:
            if key not in parameters:
                yield f"{path}{key}={node[key]}: no such key{nearest(key, parameters)}"
    if "_args_" in node or node.get("_partial_"):
        return
    for name, parameter in parameters.items():
        named = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if named and parameter.default is parameter.empty and name not in given:
            yield f"{path}{name} is missing: give {path}{name}=VALUE"
