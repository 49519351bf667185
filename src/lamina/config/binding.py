"""Builds typed settings from a composed config, and checks its targets and keys."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, is_dataclass
from typing import Any

from hydra.utils import get_object
from omegaconf import MISSING, DictConfig, OmegaConf

from lamina.config.security import ALLOWED_TARGETS, refusal
from lamina.errors import did_you_mean


@dataclass
class Binding:
    """Builds settings from a resolved config as far as possible, and collects what is wrong."""

    missing: list[str] = field(default_factory=list)
    """Keys without a value; the settings hold MISSING there."""

    problems: list[str] = field(default_factory=list)
    """Targets that are not allowed, and keys that a target does not accept."""

    refused: bool = False
    """Whether a target is not allowed; the settings hold None there."""

    def build(self, node: Any, path: str = "") -> Any:
        """Return the settings that a node describes; None for an object of another library.

        `path` is the node's key with a trailing dot.
        """
        if isinstance(node, list):
            return [self.build(item, f"{path}{index}.") for index, item in enumerate(node)]
        if not isinstance(node, dict):
            self.missing += [path.rstrip(".")] if node == MISSING else []
            return node
        target = node.get("_target_", MISSING)
        if target != MISSING and (reason := refusal(target, ALLOWED_TARGETS)):
            self.problems.append(f"{path}_target_={target}: {reason}")
            self.refused = True
            return None
        function = None if target == MISSING else get_object(target)
        required = self._required(function, node, path) if function else ()
        values = {key: self.build(value, f"{path}{key}.") for key, value in node.items()}
        if not function:
            return values
        absent = {key: self.build(MISSING, f"{path}{key}.") for key in required if key not in node}
        return _settings(function, {**absent, **values}) if _is_ours(function) else None

    def _required(
        self, function: Callable[..., Any], node: dict[str, Any], path: str
    ) -> Iterator[str]:
        """Yield the arguments that a function requires; record the given ones that it lacks."""
        try:
            parameters = inspect.signature(function).parameters
        except ValueError:  # some C classes have no signature
            return
        kinds = {each.kind for each in parameters.values()}
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            for key in node:
                if not key.startswith("_") and key not in parameters:
                    advice = did_you_mean(key, parameters)
                    self.problems.append(f"{path}{key}={node[key]}: no such key{advice}")
        if "_args_" in node or node.get("_partial_"):
            return
        for name, each in parameters.items():
            named = each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
            if named and each.default is each.empty:
                yield name


def bind(config: DictConfig) -> Any:
    """Return the settings of a config that passed preflight; other libraries' objects are None."""
    return Binding().build(OmegaConf.to_container(config, resolve=True))


def _is_ours(function: Callable[..., Any]) -> bool:
    """Whether a function is one of Lamina's settings classes, or a class method that builds one."""
    built = getattr(function, "__self__", function)
    return is_dataclass(built) and function.__module__.startswith("lamina.")


def _settings(function: Callable[..., Any], values: dict[str, Any]) -> Any:
    parameters = inspect.signature(function).parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    given = {key: value for key, value in values.items() if not key.startswith("_")}
    return function(**{k: v for k, v in given.items() if takes_any or k in parameters})
