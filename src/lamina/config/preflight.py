"""Checks a composed config before anything slow; reports all problems at once, without torch."""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from math import isfinite
from typing import Any, get_origin

from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lamina.config import library_fields, rules
from lamina.config.binding import Binding
from lamina.config.messages import not_a_group
from lamina.config.parameters import EvaluationParameters, Parameters
from lamina.config.schema import GROUPS
from lamina.depth.targets import UNITS, Target
from lamina.depth.variants import Pruned
from lamina.errors import ConfigError, reason_of
from lamina.export.reduced import Cut
from lamina.units import parse_tokens


def preflight(config: DictConfig) -> None:
    """Raise a ConfigError that names every problem of a config; parse scan.tokens in place."""
    run, problems, missing = _bound(config)
    if not isinstance(run, Parameters):
        _raise([*problems, *_setting_problems(run, config)])
        return
    problems += library_fields.problems(run)
    problems += _setting_problems(run, config)
    problems += _unused_selector(run)
    # Rules read every value except those of data, which may therefore still be missing.
    if all(key.startswith("data.") for key in missing):
        problems += rules.problems(run)
        if not any(problem.startswith(("model.", "depth.")) for problem in problems):
            problems += rules.layer_problems(run)
    _raise(problems)
    config.scan.tokens = parse_tokens("scan.tokens", config.scan.tokens)


def refuse_incomplete(config: DictConfig) -> None:
    """Raise a ConfigError if a value is missing, or a key or target unknown."""
    _raise(_bound(config)[1])


def _bound(config: DictConfig) -> tuple[Any, list[str], list[str]]:
    """Return the settings, the problems of binding them, and the keys without a value.

    Raises ConfigError if nothing more can be checked: an interpolation leads nowhere, a group is a
    plain value, or a target is not allowed.
    """
    try:
        content = OmegaConf.to_container(config, resolve=True)
        for group in (*GROUPS, "trainer.args"):
            node = OmegaConf.select(config, group)
            is_left_out = node is None and group == "data" and "trainer" not in config
            if group.partition(".")[0] in config and not (
                isinstance(node, DictConfig) or is_left_out
            ):
                raise ConfigError(not_a_group(group, node))
    except OmegaConfBaseException as error:
        raise ConfigError(_unresolved(error)) from error
    _refuse_unnamed(content)
    binding = Binding()
    run, missing = binding.build(content), sorted(binding.missing)
    problems = [f"{key} is missing: set {key}=VALUE" for key in missing] + binding.problems
    problems += _numbers_of_layers(config) if "model" in config else []
    if binding.refused:
        _raise(problems)
    if not isinstance(run, Parameters | EvaluationParameters | Cut):
        raise ConfigError(f"_target_={content.get('_target_')}: Lamina sets it: leave it out")
    return run, problems, missing


def _refuse_unnamed(content: dict[Any, Any], path: str = "") -> None:
    """Raise ConfigError if a key is no text; a file and the command line may have such keys."""
    for key, value in content.items():
        if not isinstance(key, str):
            raise ConfigError(f"{path}{key}: a name must be text, not a number, true or false")
        if isinstance(value, dict):
            _refuse_unnamed(value, f"{path}{key}.")


def _setting_problems(settings: Any, config: DictConfig, path: str = "") -> Iterator[str]:
    """Check each field's limits, at the key that holds its value, and each class's own rules."""
    complete, node = True, OmegaConf.select(config, path[:-1]) if path else config
    for entry in fields(settings):
        key, value = f"{path}{entry.name}", getattr(settings, entry.name)
        if entry.name in (node or ()) and OmegaConf.is_interpolation(node, entry.name):
            continue
        if isinstance(value, str) and value == MISSING:
            complete = False
            continue
        if isinstance(value, float) and not isfinite(value):
            yield f"{key}={value}: use a finite number"
            complete = False
            continue
        if get_origin(entry.type) is dict and not isinstance(value, dict):
            yield not_a_group(key, value)
            complete = False
            continue
        for limit in getattr(entry.type, "__metadata__", ()):
            if value is not None and not limit.fits(value):
                yield f"{key}={value}: {limit.advice}"
        options = value.items() if isinstance(value, dict) else [("", value)]
        for name, nested in options:
            if is_dataclass(nested):
                below = f"{key}.{name}." if name else f"{key}."
                yield from _setting_problems(nested, config, below)
    if complete and hasattr(settings, "problems"):
        yield from settings.problems()


def _numbers_of_layers(config: DictConfig) -> Iterator[str]:
    """Refuse a second setting of how many layers stay; a target replaces only the default."""
    if "model" not in config:
        return
    model: dict[str, Any] = OmegaConf.to_container(config.model, resolve=False)
    given = [Target(key, model[key]).setting for key in UNITS if model.get(key) is not None]
    if given and model.get("keep_layers") not in (None, "${depth.keep_layers}"):
        given.append(f"model.keep_layers={model['keep_layers']}")
    elif given:
        given += [override for override in _typed() if override.startswith("depth.keep_layers=")]
    if len(given) > 1:
        yield f"{' and '.join(given)}: set only one of them"


def _unused_selector(run: Parameters) -> Iterator[str]:
    """Refuse a selector on the command line that chooses nothing; a file may serve any model."""
    is_given = any(override.startswith(("selector=", "selector.")) for override in _typed())
    if is_given and not isinstance(run.model, Pruned):
        yield "selector chooses the layers of model=pruned: leave it out, or choose model=pruned"


def _typed() -> list[str]:
    """Return the overrides on the command line, without the + of an added key."""
    task = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return [override.lstrip("+") for override in task]


def _unresolved(error: OmegaConfBaseException) -> str:
    """Name the key of an interpolation, and why it cannot be resolved."""
    reason = reason_of(error)
    if match := re.search(r"Interpolation key '([^']+)' not found", reason):
        reason = f"refers to {match[1]}, which does not exist"
    reason = reason.removeprefix("ConfigError raised while resolving interpolation: ")
    return f"{error.full_key}: {reason}"


def _raise(problems: list[str]) -> None:
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
