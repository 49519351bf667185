"""From a composed config to typed settings: targets are checked, settings classes are built."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, is_dataclass
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from lamina.config.security import ALLOWED_TARGETS, refusal
from lamina.errors import nearest

MISSING = "???"
"""What a required value reads as until it is given."""


@dataclass
class Bound:
    """Settings built from a config's content, as far as its form allows."""

    problems: list[str] = field(default_factory=list)
    """Targets that are not allowed, and arguments that they do not take or miss."""

    refused: bool = False
    """Whether a target is not allowed: nothing stands in its place then."""

    def build(self, node: Any, path: str = "") -> Any:
        """Return the settings that a node describes; None for an object of another library.

        A required value that is not given reads as MISSING.

        Args:
            node: Of a resolved config.
            path: Its key, with a dot at its end.
        """
        if isinstance(node, list):
            return [self.build(item, f"{path}{index}.") for index, item in enumerate(node)]
        if not isinstance(node, dict):
            return node
        target = node.get("_target_", MISSING)
        if target != MISSING and (reason := refusal(target, ALLOWED_TARGETS)):
            self.problems.append(f"{path}_target_={target}: {reason}")
            self.refused = True
            return None
        function = None if target == MISSING else get_object(target)
        if function:
            self.problems += _misfits(function, node, path)
        values = {key: self.build(value, f"{path}{key}.") for key, value in node.items()}
        if not function:
            return values
        return function(**_arguments(function, values)) if _builds_settings(function) else None


def bound(config: DictConfig) -> Any:
    """Return the settings of a config that passed preflight; other libraries' objects are None."""
    return Bound().build(OmegaConf.to_container(config, resolve=True))


def _builds_settings(function: Callable[..., Any]) -> bool:
    return is_dataclass(getattr(function, "__self__", function))


def _arguments(function: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    """The values that a function takes, MISSING for a required one that is not given."""
    parameters = inspect.signature(function).parameters.values()
    given = {key: value for key, value in values.items() if not key.startswith("_")}
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return given
    defaults = {each.name: MISSING for each in parameters if each.default is each.empty}
    names = {each.name for each in parameters}
    return {**defaults, **{key: value for key, value in given.items() if key in names}}


def _misfits(function: Callable[..., Any], node: dict[str, Any], path: str) -> Iterator[str]:
    """Name arguments that a function does not take, and those that it misses."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # some classes in C have none
        return
    given = [key for key in node if not key.startswith("_")]
    if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        for key in given:
            if key not in parameters:
                yield f"{path}{key}={node[key]}: no such key{nearest(key, parameters)}"
    if "_args_" in node or node.get("_partial_"):
        return
    for name, parameter in parameters.items():
        named = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if named and parameter.default is parameter.empty and name not in given:
            yield f"{path}{name} is missing: give {path}{name}=VALUE"
