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
class Binding:
    """Builds settings from a config's content, as far as its form allows."""

    missing: list[str] = field(default_factory=list)
    """Keys without a value; the settings hold MISSING there."""

    problems: list[str] = field(default_factory=list)
    """Targets that are not allowed, and keys that targets do not take."""

    refused: bool = False
    """Whether a target is not allowed; the settings hold None there."""

    def build(self, node: Any, path: str = "") -> Any:
        """Return the settings that a node describes; None for an object of another library.

        Args:
            node: Of a resolved config.
            path: Its key, with a dot at its end.
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
        """Return the arguments that a function needs, and name those that it does not take."""
        try:
            parameters = inspect.signature(function).parameters
        except ValueError:  # some classes in C have none
            return
        kinds = {each.kind for each in parameters.values()}
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            unknown = [key for key in node if not key.startswith("_") and key not in parameters]
            for key in unknown:
                advice = nearest(key, parameters)
                self.problems.append(f"{path}{key}={node[key]}: no such key{advice}")
        if "_args_" in node or node.get("_partial_"):
            return
        for name, each in parameters.items():
            named = each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
            if named and each.default is each.empty:
                yield name


def bound(config: DictConfig) -> Any:
    """Return the settings of a config that passed preflight; other libraries' objects are None."""
    return Binding().build(OmegaConf.to_container(config, resolve=True))


def _is_ours(function: Callable[..., Any]) -> bool:
    """Whether a function is a settings class of Lamina, or a class method that builds one."""
    built = getattr(function, "__self__", function)
    return is_dataclass(built) and function.__module__.startswith("lamina.")


def _settings(function: Callable[..., Any], values: dict[str, Any]) -> Any:
    parameters = inspect.signature(function).parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    given = {key: value for key, value in values.items() if not key.startswith("_")}
    return function(**{k: v for k, v in given.items() if takes_any or k in parameters})
