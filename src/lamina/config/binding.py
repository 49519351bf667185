"""Builds typed settings from a composed config, and checks its targets and keys."""

from dataclasses import dataclass, field, is_dataclass
from types import NoneType
from typing import Any, get_args, get_origin

from hydra.utils import get_object
from omegaconf import MISSING, DictConfig, OmegaConf

from lamina.config.parameters import Parameters
from lamina.config.schema import GROUPS, OPTIONS, is_open, own_fields, registered
from lamina.config.security import ALLOW, allowed
from lamina.errors import did_you_mean
from lamina.heal.callbacks.settings import CallbackSettings, UserCallback

ROOT = "lamina.experiment.Experiment"
"""The target of conf/config.yaml; this package lies below its module."""


@dataclass
class Binding:
    """Builds settings from a resolved config as far as possible, and collects what is wrong."""

    missing: list[str] = field(default_factory=list)
    """Keys without a value; the settings hold MISSING there."""
    problems: list[str] = field(default_factory=list)
    """Targets that are not allowed, and keys that a target does not accept."""
    refused: bool = False
    """Whether a target is not allowed; the settings hold None there."""

    def build(self, node: Any, path: str = "", kind: Any = Parameters) -> Any:
        """Return the settings that a node describes; a plain mapping holds none.

        `path` is the node's key with a trailing dot, `kind` the annotation of the field it is for.
        """
        if isinstance(node, list):
            return [self.build(item, f"{path}{index}.", None) for index, item in enumerate(node)]
        if not isinstance(node, dict):
            self.missing += [path.rstrip(".")] if node == MISSING else []
            return node
        for key in node.keys() & {"_args_", "_partial_"}:
            self.problems.append(f"{path}{key}: not allowed: set arguments by name")
            self.refused = True
        target = str(node.get("_target_", MISSING))
        if target == MISSING:
            below = get_args(kind)[1] if get_origin(kind) is dict else None
            return {key: self.build(value, f"{path}{key}.", below) for key, value in node.items()}
        given = {key: node[key] for key in node if key not in ("_target_", "_convert_")}
        if settings := self._class(target, kind):
            return self._settings(settings, given, path)
        if kind is CallbackSettings and target in allowed():
            return UserCallback(target=target, arguments=self.build(given, path, None))
        advice = "only Lamina's own settings are, at the keys of their groups"
        if kind is CallbackSettings:
            advice = f"if you trust this TrainerCallback, set {ALLOW}={target}"
        self.problems.append(f"{path}_target_={target}: not allowed; {advice}")
        self.refused = True
        return None

    def _class(self, target: str, kind: Any) -> Any:
        """Return the settings class that a target names, if a field may hold any."""
        if kind is Parameters and target == ROOT:
            return get_object(ROOT)
        kinds = () if get_origin(kind) is dict else (kind, *get_args(kind))
        holds = any(getattr(each, "__module__", "").startswith("lamina.") for each in kinds)
        return registered().get(target) if holds else None

    def _settings(self, settings: Any, node: dict[str, Any], path: str) -> Any:
        """Build settings; record keys that they lack, and those that they require."""
        kinds = {each.name: each.type for each in own_fields(settings)}
        given = {k: self.build(v, f"{path}{k}.", kinds.get(k)) for k, v in node.items()}
        for key in [] if is_open(settings) else [key for key in given if key not in kinds]:
            advice = did_you_mean(key, kinds)
            self.problems.append(f"{path}{key}={given.pop(key)}: no such key{advice}")
        for name in [name for name in kinds if name not in given]:
            given[name] = self.build(MISSING, f"{path}{name}.")
        for group in filter(OPTIONS.__contains__, given):
            if given[group] is not None or NoneType not in get_args(kinds[group]):
                self._check_options(group, given[group], path)
        return settings.of(**given) if is_open(settings) else settings(**given)

    def _check_options(self, group: str, value: Any, path: str) -> None:
        """Record what stands in place of the settings of a group's options."""
        found, may_be_null = {"": value}, self.refused
        if group not in GROUPS and isinstance(value, dict):
            found, may_be_null = {f".{name}": each for name, each in value.items()}, True
        for name, each in found.items():
            if each == MISSING or (each is None and may_be_null):
                continue
            if type(each) not in (*OPTIONS[group].values(), UserCallback):
                shown = getattr(type(each) if is_dataclass(each) else each, "__qualname__", each)
                line = f"{path}{group}{name}={shown}: expected the settings of an option"
                self.problems.append(f"{line}; choose {group}=OPTION")
                self.refused = True


def bind(config: DictConfig) -> Any:
    """Return the settings of a config that passed preflight."""
    return Binding().build(OmegaConf.to_container(config, resolve=True))
