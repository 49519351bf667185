"""`python -m train`: compose, check, instantiate, execute."""

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lamina.commands.entry import Ended, run_app
from lamina.config.paths import conf_dir
from lamina.config.preflight import preflight
from lamina.errors import LaminaError
from lamina.measure.results import Record


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def train(config: DictConfig) -> None:
    """Run one job: everything that can be refused is refused before a weight is read."""
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    record = Record(folder, OmegaConf.to_container(job.overrides.task, resolve=False))
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
    """Run the command."""
    run_app(train, "config")
