"""What a sweep says while it runs and when it ends, and the summary that it leaves."""

import gc
import logging
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from lamina.config import security
from lamina.config.preflight import preflight
from lamina.depth.plan import make_plan
from lamina.depth.selection import NoScores, ScoresNeededError
from lamina.errors import Ended, LaminaError, OutputError
from lamina.measure.results import DRY_RUN_FILE, read_result
from lamina.runtime.lock import owned

if TYPE_CHECKING:
    from rich.console import RenderableType


MULTIRUN_FILE = "multirun.yaml"
"""What Hydra leaves in a sweep's folder: the config, with the command line."""

QUEUED = ("slurm", "submitit_slurm")
"""Options of hydra/launcher whose jobs wait in a cluster's queue."""


class Sweep(Callback):
    """Follows a sweep from the process that started it, and from each job's."""

    started: ClassVar["Sweep | None"] = None
    """The sweep that this process started; Hydra makes the object, and calls nothing at its end
    where a launcher fails."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to a cluster's worker without what belongs to this process."""
        return _in_a_worker, ()

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Note what is to be done."""
        Sweep.started = self
        self.folder = Path(config.hydra.sweep.dir)
        self.planned = planned_jobs(config)
        self.done = 0
        self.is_rehearsed = config.dry_run
        self.is_queued = config.hydra.runtime.choices["hydra/launcher"] in QUEUED
        self.ownership = ExitStack()
        try:
            self.ownership.enter_context(owned(self.folder, "hydra.sweep.dir"))
        except OutputError as error:
            raise Ended(str(error)) from error
        self.began = time.monotonic()
        if self.is_queued:
            # Without accounting on the cluster each of its looks at the queue ends in a warning.
            # Its import sets a level of its own (submitit 1.5.4).
            import_module("submitit")
            logging.getLogger("submitit").setLevel(logging.ERROR)
            self.look_ahead(config)

    def look_ahead(self, config: DictConfig) -> None:
        """Check every job here before it waits in a queue.

        Raises:
            Ended: None of them could run.
        """
        refused = {}
        for number, overrides in enumerate(self.planned):
            if reason := refusal(config, overrides, self.folder / str(number)):
                refused[number] = reason
                sys.stderr.write(f"job {number} will be refused: {reason}\n")
        if len(refused) == len(self.planned):
            self.ownership.close()
            raise Ended("none of the sweep's jobs could run; nothing was submitted")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Write the summary again, and say how far the sweep is."""
        from lamina.report.sweep_table import read_jobs, write_summary

        if config.hydra.mode != RunMode.MULTIRUN or config.dry_run:
            return
        following = Sweep.started
        folder = Path(config.hydra.sweep.dir)
        jobs = read_jobs(folder, following.planned if following else ())
        try:
            write_summary(folder, jobs)
        except OutputError as error:
            sys.stderr.write(f"error: {error}\n")
        if following is not None:
            following.done += 1
            following.tell(sum(job.status == "failed" for job in jobs[: following.done]))

    def tell(self, failed: int) -> None:
        """Print one line: jobs done, running and failed since the command began; time left."""
        left = len(self.planned) - self.done
        seconds = (time.monotonic() - self.began) / self.done * left
        counts = {"done": self.done - failed, "running": int(left > 0), "failed": failed}
        line = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
        line = f"sweep of {len(self.planned)} jobs: {line}"
        sys.stderr.write(f"{line}, about {_duration(seconds)} left\n" if left else f"{line}\n")

    def close(self) -> str | None:
        """Print the table; return what is to be said if a job failed or left nothing."""
        from rich.console import Console

        from lamina.report.sweep_table import read_jobs, sweep_table, write_summary

        if self.is_rehearsed:
            return self._refused_in_rehearsal()
        jobs = read_jobs(self.folder, self.planned)
        Console(file=sys.stdout).print(sweep_table(jobs))
        with self.ownership:
            write_summary(self.folder, jobs)
        wrong = [job for job in jobs if job.status != "completed"]
        if not wrong:
            return None
        named = ", ".join(f"{job.name} ({job.status})" for job in wrong)
        queued = "; some may still be in the queue (squeue, scancel)" if self.is_queued else ""
        return (
            f"{len(wrong)} of {len(jobs)} jobs are not completed: {named}{queued}; the same "
            f"command with hydra.sweep.dir={self.folder} runs only these again"
        )

    def _refused_in_rehearsal(self) -> str | None:
        """Jobs that were looked at with dry_run=true leave a report, and no result."""
        self.ownership.close()
        numbers = range(len(self.planned))
        wrong = [n for n in numbers if not (self.folder / str(n) / DRY_RUN_FILE).is_file()]
        said = f"{len(wrong)} of {len(self.planned)} jobs would not run: {wrong}; see above"
        return said if wrong else None


def _in_a_worker() -> Sweep:
    """Let a worker look at the config it composes as closely as the command does."""
    security.install()
    return Sweep()


def tabled(folder: Path) -> "RenderableType":
    """Write a sweep's summary again, from its files alone; return its table.

    Raises:
        OutputError: The summary cannot be written.
    """
    from lamina.report.sweep_table import read_jobs, sweep_table, write_summary

    jobs = read_jobs(folder, planned_jobs(OmegaConf.load(folder / MULTIRUN_FILE)))
    write_summary(folder, jobs)
    return sweep_table(jobs)


def close_sweep() -> str | None:
    """End the sweep that this process started, if it did; return what went wrong in it."""
    return Sweep.started.close() if Sweep.started is not None else None


def is_done(folder: Path, overrides: list[str]) -> bool:
    """Say whether an earlier start of a sweep completed a job.

    Args:
        folder: Of the job.
        overrides: Its own now; with others it is another job.
    """
    before = read_result(folder)
    return (
        before is not None
        and before["status"] == "completed"
        and sorted(before["overrides"]) == sorted(overrides)
    )


def refusal(config: DictConfig, overrides: Sequence[str], folder: Path) -> str | None:
    """Return why a job of a sweep would be refused, as far as its config and its model's decide.

    Preflight looks at a local model's layers only; a hub's config is asked for here.

    Args:
        config: The sweep's, with Hydra's own.
        overrides: The job's.
        folder: The job's.
    """
    loader = GlobalHydra.instance().config_loader()
    job = loader.load_sweep_config(config, list(overrides))
    with open_dict(job):
        job.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(job)
        del job["hydra"]
    try:
        preflight(job)
        run = instantiate(job)
        make_plan(run.model, run.model_name, lambda _: NoScores())
    except LaminaError as error:
        return str(error)
    except ScoresNeededError:
        return None
    return None


def let_go(error: BaseException) -> None:
    """Free the model that a failed job's error holds, before the next job loads its own.

    Args:
        error: As it was caught; its traceback still says where it was raised.
    """
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__
    gc.collect()


def planned_jobs(config: DictConfig) -> list[list[str]]:
    """Return the overrides of every job that Hydra's basic sweeper makes of a command line."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    given = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    given += OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    jobs: list[list[str]] = BasicSweeper.split_arguments(
        OverridesParser.create().parse_overrides(given), None
    )[0]
    return jobs


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else (
        f"{minutes} min" if minutes else f"{rest} s"
    )  # fmt: skip
