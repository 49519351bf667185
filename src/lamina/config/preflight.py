"""Checks of a composed config before anything slow: all problems at once, torch not imported."""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lamina.config import library_fields, rules
from lamina.config.binding import MISSING, Binding
from lamina.config.schema import GROUPS
from lamina.errors import ConfigError, joined
from lamina.units import count


def preflight(config: DictConfig) -> None:
    """Refuse a config that cannot run, naming every problem it has.

    Args:
        config: The composed config; scan.tokens becomes a whole number here.

    Raises:
        ConfigError: Values are missing, unknown, out of range or contradict each other, or a
            `_target_` is not one of ours.
    """
    run, problems, missing = _bound(config)
    problems += library_fields.problems(run)
    problems += _setting_problems(run, config)
    # Rules read no data set, so that one may still be missing; they may read any other value.
    if all(key.startswith("data.") for key in missing):
        problems += rules.problems(run)
        if not any(problem.startswith(("model.", "depth.")) for problem in problems):
            problems += rules.layer_problems(run)
    _raise(problems)
    config.scan.tokens = count("scan.tokens", config.scan.tokens)


def resolved(config: DictConfig) -> None:
    """Refuse a config that misses a value, or has an unknown key or target.

    Raises:
        ConfigError: It has.
    """
    _raise(_bound(config)[1])


def _bound(config: DictConfig) -> tuple[Any, list[str], list[str]]:
    """Return the settings, what is wrong with the config's form, and the keys without a value.

    Raises:
        ConfigError: It cannot be looked at further: an interpolation leads nowhere, a value stands
            in the place of a group, or a target is not allowed.
    """
    try:
        content = OmegaConf.to_container(config, resolve=True)
        for group in (*GROUPS, "trainer.args"):
            node = OmegaConf.select(config, group)
            if group.partition(".")[0] in config and not isinstance(node, DictConfig):
                shown = "null" if node is None else node
                raise ConfigError(f"{group}={shown}: a group of keys; give {group}.NAME=VALUE")
    except OmegaConfBaseException as error:
        raise ConfigError(_unresolved(error)) from error
    binding = Binding()
    run, missing = binding.build(content), sorted(binding.missing)
    problems = [f"{key} is missing: give {key}=VALUE" for key in missing] + binding.problems
    if binding.refused:
        _raise(problems)
    return run, problems, missing


def _setting_problems(settings: Any, config: DictConfig, path: str = "") -> Iterator[str]:
    """Hold each field of a tree of settings against its limits, and apply the classes' own rules.

    A field that refers to another key is checked there.
    """
    complete = True
    for entry in fields(settings):
        key, value = f"{path}{entry.name}", getattr(settings, entry.name)
        if _is_reference(config, key):
            continue
        if isinstance(value, str) and value == MISSING:
            complete = False
            continue
        for limit in getattr(entry.type, "__metadata__", ()):
            if value is not None and not limit.fits(value):
                yield f"{key}={value}: {limit.advice}"
        for name, nested in value.items() if isinstance(value, dict) else (("", value),):
            if is_dataclass(nested):
                yield from _setting_problems(nested, config, f"{key}.{name}.".replace("..", "."))
    if complete and hasattr(settings, "problems"):
        yield from settings.problems()


def _is_reference(config: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return isinstance(node, DictConfig) and name in node and OmegaConf.is_interpolation(node, name)


def _unresolved(error: OmegaConfBaseException) -> str:
    """Say which key an interpolation stands in, and why it cannot be followed."""
    reason = str(error).splitlines()[0]
    if match := re.search(r"Interpolation key '([^']+)' not found", reason):
        reason = f"refers to {match[1]}, which is not there"
    said = reason.removeprefix("ConfigError raised while resolving interpolation: ")
    return f"{error.full_key}: {said}"


def _raise(problems: list[str]) -> None:
    if problems:
        raise ConfigError(joined(list(dict.fromkeys(problems))))
