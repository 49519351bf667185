"""`python -m train`: compose, check, instantiate, execute."""

import logging
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lamina.commands.entry import Ended, run_app, said_in_one_line
from lamina.commands.older import take_old
from lamina.commands.sweep import close_sweep, is_done, let_go
from lamina.config.paths import conf_dir
from lamina.config.preflight import preflight
from lamina.errors import LaminaError
from lamina.heal.ownership import owned
from lamina.measure.disk import full_disks
from lamina.measure.results import DRY_RUN_FILE, Record, write_json
from lamina.pipeline import Pipeline

logger = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def train(config: DictConfig) -> None:
    """Run one job: everything that can be refused is refused before a weight is read."""
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    overrides = OmegaConf.to_container(job.overrides.task, resolve=False)
    in_sweep = job.mode == RunMode.MULTIRUN
    try:
        if config.dry_run:
            preflight(config)
            rehearse(config, folder)
        elif in_sweep and is_done(folder, overrides):
            sys.stderr.write(f"job {job.job.num} was completed before\n")
        else:
            heal(config, folder, overrides)
    except Exception as error:
        said = str(error) if isinstance(error, LaminaError) else bug(error, folder)
        if not in_sweep:
            raise Ended(said) from error
        # A sweep's verdict comes from what its jobs wrote: raised, it would end in Hydra's lines.
        sys.stderr.write(f"error in job {job.job.num}: {said}\n")
        let_go(error)


def bug(error: Exception, folder: Path) -> str:
    """Log the traceback of an error that nobody expected; return one line about it."""
    logger.exception("an error that Lamina does not know")
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"{reason}; the traceback is in {folder / 'train.log'}"


def heal(config: DictConfig, folder: Path, overrides: list[str]) -> None:
    """Execute the pipeline, and print what came of it."""
    with owned(folder, "hydra.run.dir"):
        record = Record(folder, overrides)
        with record.outcome(), full_disks(folder):
            preflight(config)
            Pipeline(instantiate(config), record).execute()
    show(record, folder)


def rehearse(config: DictConfig, folder: Path) -> None:
    """Print what the run would do and take, and write it to dry_run.json."""
    from rich.console import Console

    from lamina.measure.dry_run import dry_run_report, refuse_what_does_not_fit
    from lamina.rehearsal import Rehearsal

    content = Rehearsal(instantiate(config)).report()
    resolved = OmegaConf.to_container(config, resolve=True)
    write_json(folder / DRY_RUN_FILE, {"config": resolved, **content})
    console = Console()
    console.print(dry_run_report(content, OmegaConf.to_yaml(config, resolve=True), console))
    refuse_what_does_not_fit(content, config.output_dir)


def show(record: Record, folder: Path) -> None:
    """Print a finished run's main figures."""
    from rich.console import Console

    from lamina.measure.summary import summary

    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    Console().print(summary(record.content, shown))


def main() -> None:
    """Run the command."""
    with said_in_one_line():
        sys.argv[1:] = take_old(sys.argv[1:])
    run_app(train, "config", closing=close_sweep)
