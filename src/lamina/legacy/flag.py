"""`python -m train --old OLD.yaml`: run a config of the older form as it is."""

import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from lamina.errors import ConfigError

FLAG = "--old"
GROUP = "older"
"""Subgroup of the experiments held in memory; no shipped file has this name."""


def take_old(arguments: Sequence[str], today: Callable[[str], str | None]) -> list[str]:
    """Replace `--old FILE` by the choice of an experiment in Hydra's ConfigStore.

    For `today` see `resolve`. A launcher sends the store to its jobs, which then need no file.
    Overrides still win.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(FLAG, action="append", nargs="?", const="", default=[], dest="given")
    found, rest = parser.parse_known_args(arguments)
    if not (given := found.given):
        return rest
    if not all(given):
        raise ConfigError(f"{FLAG}: pass the path of a config of the older form")
    if len(given) > 1:
        raise ConfigError(f"{FLAG} is given more than once: {', '.join(given)}; pass one file")
    if other := next((a for a in rest if a.lstrip("+").startswith("experiment=")), None):
        raise ConfigError(f"{FLAG} {given[0]} and {other}: use one of them")
    # Imported here: other runs do not need the YAML library.
    from lamina.legacy import experiment_file
    from lamina.legacy.form import resolve

    path = Path(given[0])
    older = resolve(path, today=today)
    if experiment_file.keeps_older_rate(older):
        sys.stderr.write(f"{experiment_file.KEPT_RATE}\n")
    name = experiment_file.experiment_name(path)
    node = OmegaConf.create(experiment_file.experiment(older))
    ConfigStore.instance().store(
        group=f"experiment/{GROUP}", name=name, node=node, package="_global_"
    )
    return [f"experiment={GROUP}/{name}", *rest]
