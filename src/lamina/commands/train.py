"""`python -m train`: compose, check, instantiate, execute."""

import logging
import signal
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lamina.commands.app import run_app, said_in_one_line
from lamina.config.backend_choice import needs_own_process, settle
from lamina.config.preflight import preflight
from lamina.dry_run import rehearse
from lamina.errors import ConfigError, Ended, LaminaError
from lamina.launch.job import Job, announce, awaited
from lamina.launch.layout import Layout, is_another_node, layout, use_one_device
from lamina.launch.processes import said_if_not_requeued, start, wait_for_requeue
from lamina.launch.sweep import close_sweep, is_done, let_go
from lamina.launch.worker import work
from lamina.legacy.flag import take_old
from lamina.measure.results import Record
from lamina.run import Pipeline
from lamina.runtime import distributed
from lamina.runtime.lock import owned
from lamina.runtime.paths import conf_dir

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
            look_ahead(config, folder, overrides)
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
    """Execute the pipeline, in as many processes as are asked for, and print what came of it."""
    if is_another_node():
        preflight(config)
        found = layout_of(config)
        start(job_of(config, folder, overrides, settle(config, found.processes)), found)
        return
    with owned(folder, "hydra.run.dir"):
        record = Record(folder, overrides)
        with record.outcome(), said_if_not_requeued():
            preflight(config)
            found = layout_of(config)
            record.content["notes"] = notes = settled(config, found)
            job, apart = job_of(config, folder, overrides, notes), needs_own_process(config)
            if apart:
                _ = instantiate(config).plan  # layers are scored here, where nothing is patched
            if found.has_to_start or apart:
                try:
                    start(job, found)
                finally:
                    record.adopt()  # the first of the processes has kept it
                if record.content["status"] == "requeued":
                    wait_for_requeue()
            else:
                pipeline_of(config, job, found, record).execute()
    show(record, folder)


def look_ahead(config: DictConfig, folder: Path, overrides: list[str]) -> None:
    """Rehearse a run, where its backend lets it be."""
    preflight(config)
    found = layout_of(config)
    notes = settled(config, found)
    use_one_device()
    if needs_own_process(config):
        start(job_of(config, folder, overrides, notes), found)
    else:
        rehearse(config, folder, found.processes)


def pipeline_of(config: DictConfig, job: Job, found: Layout, record: Record) -> Pipeline:
    """Return the run of this process, alone or as the first that a person's torchrun started."""
    if found.processes == 1:
        return Pipeline(instantiate(config), record)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        raise ConfigError("--multirun is not for torchrun: each job starts processes of its own")
    announce(job)
    return distributed.in_turn("plan", lambda: Pipeline(instantiate(config), record))


def layout_of(config: DictConfig) -> Layout:
    """Return how many processes a run has."""
    return layout(config.distributed, config.parallel)


def settled(config: DictConfig, found: Layout) -> list[str]:
    """Settle which backend runs, and how; say it, and return it for the record."""
    notes = settle(config, found.processes)
    for note in notes:
        logger.info("%s", note)
    if found.processes == 1:
        use_one_device()
    return notes


def job_of(config: DictConfig, folder: Path, overrides: list[str], notes: list[str]) -> Job:
    """Return what each process of a run has to know."""
    logged = HydraConfig.get().job_logging
    return Job(
        config=OmegaConf.to_container(config, resolve=True),
        overrides=overrides,
        notes=notes,
        folder=str(folder),
        logging=OmegaConf.to_container(logged, resolve=True) if logged else None,
        requeues=callable(signal.getsignal(distributed.REQUEUE_SIGNAL)),
    )


def show(record: Record, folder: Path) -> None:
    """Print a finished run's main figures."""
    from rich.console import Console

    from lamina.report.run_summary import summary

    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    Console().print(summary(record.content, shown))


def main() -> None:
    """Run the command."""
    with said_in_one_line():
        if not distributed.is_first():
            work(awaited())  # torchrun started this one beside the first, which reads the config
            return
        sys.argv[1:] = take_old(sys.argv[1:])
    run_app(train, "config", closing=close_sweep)
