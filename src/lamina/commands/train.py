"""`python -m train`: compose, check, instantiate, execute."""

import os
import sys
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig

from lamina.config.composition import COMPOSITION_ERRORS, explain
from lamina.config.paths import conf_dir, load_environment
from lamina.config.preflight import preflight
from lamina.config.schema import register
from lamina.errors import LaminaError
from lamina.measure.results import Record


class Ended(BaseException):
    """Carries a single run's error past Hydra, which would print a line of its own about it."""


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def train(config: DictConfig) -> None:
    """Run one job: everything that can be refused is refused before a weight is read."""
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    record = Record(folder, list(job.overrides.task))
    try:
        with record.outcome():
            preflight(config)
            run = instantiate(config)
            run.execute(record)
    except LaminaError as error:
        if job.mode == RunMode.RUN:
            raise Ended(str(error)) from error
        sys.stderr.write(f"error in job {job.job.num}: {error}\n")
        raise
    show(record, folder)


def show(record: Record, folder: Path) -> None:
    """Print a finished run's main figures."""
    from rich.console import Console

    from lamina.measure.summary import summary

    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    Console().print(summary(record.content, shown))


def main() -> None:
    """Run the command; errors addressed to the user come without a traceback."""
    register()
    load_environment()
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        train()
        return
    # Hydra prints composition errors its own way unless it is told to raise them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        train()
    except (LaminaError, Ended) as error:
        _fail(str(error))
    except COMPOSITION_ERRORS as error:
        _fail(explain(error, sys.argv[1:]))
    except KeyboardInterrupt:
        _fail("interrupted; start the same command in the same folder to go on")


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    sys.exit(1)
