"""Checks of a composed config before anything slow: all problems at once, torch not imported."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from lamina.config import contradictions, layers, passed_on, ranges, targets
from lamina.errors import ConfigError, joined


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
    for check in (passed_on, ranges, contradictions, layers):
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
    missing = sorted(OmegaConf.missing_keys(config))
    content: dict[str, Any] = OmegaConf.to_container(config, resolve=True)
    problems = [f"{key} is missing: give {key}=VALUE" for key in missing]
    return content, [*problems, *targets.problems(content)]


def _raise(problems: list[str]) -> None:
    if problems:
        raise ConfigError(joined(list(dict.fromkeys(problems))))
