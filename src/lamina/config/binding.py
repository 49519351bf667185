"""Builds typed settings from a composed config, and checks its targets and keys."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass
from typing import Any

from hydra.utils import get_object
from omegaconf import MISSING, DictConfig, OmegaConf

from lamina.config.schema import GROUPS, OPTIONS
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
        """Return the settings that a node describes; for another library's object its function.

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
        values = {key: self.build(value, f"{path}{key}.") for key, value in node.items()}
        return values if target == MISSING else self._settings(get_object(target), values, path)

    def _settings(self, function: Callable[..., Any], values: dict[str, Any], path: str) -> Any:
        """Call a function of Lamina's settings; record keys that it lacks, and those it requires.

        The function of another library is checked, but not called.
        """
        try:
            parameters = inspect.signature(function).parameters
        except ValueError:  # some C classes have no signature
            return function
        given = {key: value for key, value in values.items() if not key.startswith("_")}
        if all(each.kind is not each.VAR_KEYWORD for each in parameters.values()):
            for key in [key for key in given if key not in parameters]:
                advice = did_you_mean(key, parameters)
                self.problems.append(f"{path}{key}={given.pop(key)}: no such key{advice}")
        if "_args_" not in values and not values.get("_partial_"):
            for name, each in parameters.items():
                named = each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
                if named and each.default is each.empty and name not in given:
                    given[name] = self.build(MISSING, f"{path}{name}.")
        for group in filter(OPTIONS.__contains__, given):
            self._check_options(group, given[group], path)
        built = getattr(function, "__self__", function)  # the class of a class method
        is_ours = is_dataclass(built) and function.__module__.startswith("lamina.")
        return function(**given) if is_ours else function

    def _check_options(self, group: str, value: Any, path: str) -> None:
        """Record what stands in place of the settings of a group's options."""
        found, may_be_null = {"": value}, self.refused
        if group not in GROUPS and isinstance(value, dict):
            found, may_be_null = {f".{name}": each for name, each in value.items()}, True
        for name, each in found.items():
            if each == MISSING or (each is None and may_be_null):
                continue
            if type(each) not in OPTIONS[group].values():
                shown = getattr(type(each) if is_dataclass(each) else each, "__qualname__", each)
                line = f"{path}{group}{name}={shown}: expected the settings of an option"
                self.problems.append(f"{line}; choose {group}=OPTION")
                self.refused = True


def bind(config: DictConfig) -> Any:
    """Return the settings of a config that passed preflight."""
    return Binding().build(OmegaConf.to_container(config, resolve=True))
