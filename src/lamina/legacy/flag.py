"""`--old OLD.yaml` of `python -m train`: a config of the older form, run as it is."""

from collections.abc import Sequence
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from lamina.errors import ConfigError
from lamina.legacy.experiment_file import experiment, experiment_name
from lamina.legacy.form import resolve

FLAG = "--old"
GROUP = "older"
"""Of the experiments that are held in memory; no file of ours has this name."""


def take_old(arguments: Sequence[str]) -> list[str]:
    """Turn `--old FILE` into the choice of an experiment that Hydra holds in memory.

    In memory, because a launcher hands what Hydra holds to its jobs, which then need no file.

    Args:
        arguments: The command line's.

    Returns:
        The arguments that Hydra is to read; the overrides among them still win.

    Raises:
        ConfigError: The flag is not followed by one file, another experiment is chosen as well,
            or the file cannot be read.
    """
    given, rest = _split(arguments)
    if not given:
        return rest
    if len(given) > 1:
        raise ConfigError(f"{FLAG}: give it once, it was {', '.join(given)}")
    if other := next((a for a in rest if a.lstrip("+").startswith("experiment=")), None):
        raise ConfigError(f"{FLAG} {given[0]} and {other}: give one of them")
    name = _hold(Path(given[0]))
    # Hydra's parser wants all overrides side by side.
    first = next((n for n, a in enumerate(rest) if "=" in a and not a.startswith("-")), 0)
    return [*rest[:first], f"experiment={GROUP}/{name}", *rest[first:]]


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The values of the flag, and all other arguments."""
    given: list[str] = []
    rest: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        flag, equals, value = argument.partition("=")
        if flag != FLAG:
            rest.append(argument)
            continue
        value = value if equals else next(remaining, "")
        if not value or value.startswith("-"):
            raise ConfigError(f"{FLAG}: give the path of a config of the older form")
        given.append(value)
    return given, rest


def _hold(path: Path) -> str:
    """Put the experiment that a file of the older form makes into Hydra's store."""
    name = experiment_name(path)
    node = OmegaConf.create(experiment(resolve(path)))
    ConfigStore.instance().store(
        group=f"experiment/{GROUP}", name=name, node=node, package="_global_"
    )
    return name
