"""Checks of a composed config before anything slow: all problems at once, torch not imported."""

import re
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lamina.config import backend_choice, layers, machine, passed_on, ranges, rules, targets
from lamina.config.library_fields import either
from lamina.errors import ConfigError, joined

GROUPS = ("model", "selector", "adapter", "backend", "data", "trainer", "evaluation")
"""Nodes that hold one option each."""


def preflight(config: DictConfig) -> None:
    """Refuse a config that cannot run, naming every problem it has.

    Args:
        config: The composed config; its interpolations are resolved here, and its
            token counts become whole numbers.

    Raises:
        ConfigError: Values are missing, unknown, out of range or contradict each other, or a
            `_target_` is not one of ours.
    """
    ranges.read_counts(config)
    content, problems = _read(config)
    for check in (passed_on, ranges, rules, machine, layers, backend_choice):
        problems.extend(check.problems(content))
    _raise(problems)


def resolved(config: DictConfig) -> dict[str, Any]:
    """Return a composed config's content, if it has every value and no unknown key or target.

    Raises:
        ConfigError: It has not.
    """
    content, problems = _read(config)
    _raise(problems)
    return content


def _read(config: DictConfig) -> tuple[dict[str, Any], list[str]]:
    """Return the content, and what is wrong with its form.

    Raises:
        ConfigError: It cannot be looked at further: an interpolation leads nowhere, or a value
            stands in the place of a group.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        content: dict[str, Any] = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(_unresolved(error)) from error
    for group in (*GROUPS, "trainer.args"):
        node = ranges.at(content, group)
        if group.partition(".")[0] in content and not isinstance(node, dict):
            raise ConfigError(f"{group}={either([node])}: a group of keys; give {group}.NAME=VALUE")
    problems = [f"{key} is missing: give {key}=VALUE" for key in missing]
    return content, [*problems, *targets.problems(content)]


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
