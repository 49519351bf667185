"""What a sweep says while it runs and when it ends, and the summary that it leaves."""

import gc
import logging
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from lamina.commands.entry import Ended
from lamina.config.preflight import preflight
from lamina.depth.plan import make_plan
from lamina.depth.statistics import Statistics
from lamina.errors import LaminaError
from lamina.measure.results import read_result


class Sweep(Callback):
    """Follows a sweep from the process that started it, and from each job's."""

    started: ClassVar["Sweep | None"] = None
    """The sweep that this process started; Hydra makes the object, and calls nothing at its end
    once a job has failed."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Note what is to be done."""
        Sweep.started = self
        self.folder = Path(config.hydra.sweep.dir)
        self.planned = planned_jobs(config)
        self.done = 0
        self.began = time.monotonic()
        if config.hydra.launcher._target_.endswith(".SlurmLauncher"):
            # Without accounting on the cluster each of its looks at the queue ends in a warning.
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
            raise Ended("none of the sweep's jobs could run; nothing was submitted")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Write the summary again, and say how far the sweep is."""
        from lamina.measure.sweep import read_jobs, write_summary

        if config.hydra.mode != RunMode.MULTIRUN:
            return
        following = Sweep.started
        folder = Path(config.hydra.sweep.dir)
        jobs = read_jobs(folder, following.planned if following else ())
        write_summary(folder, jobs)
        if following is not None:
            following.done += 1
            following.tell(sum(job.status == "failed" for job in jobs))

    def tell(self, failed: int) -> None:
        """Print one line: jobs that are through, jobs that failed, time that is left."""
        left = len(self.planned) - self.done
        seconds = (time.monotonic() - self.began) / self.done * left
        line = f"sweep: {self.done} of {len(self.planned)} jobs through"
        line += f", {failed} failed" if failed else ""
        sys.stderr.write(f"{line}, about {_duration(seconds)} left\n" if left else f"{line}\n")

    def close(self) -> str | None:
        """Print the table; return what is to be said if a job failed or left nothing."""
        from rich.console import Console

        from lamina.measure.sweep import read_jobs, sweep_table, write_summary

        jobs = read_jobs(self.folder, self.planned)
        write_summary(self.folder, jobs)
        Console(file=sys.stdout).print(sweep_table(jobs))
        wrong = [job for job in jobs if job.status != "completed"]
        if not wrong:
            return None
        named = ", ".join(f"{job.name} ({job.status})" for job in wrong)
        return (
            f"{len(wrong)} of {len(jobs)} jobs are not completed: {named}; the same command with "
            f"hydra.sweep.dir={self.folder} runs only these again"
        )


def close_sweep() -> str | None:
    """End the sweep that this process started, if it did; return what went wrong in it."""
    return Sweep.started.close() if Sweep.started is not None else None


def let_go(error: BaseException) -> None:
    """Free the model that a failed job's error holds: Hydra keeps the error until the sweep ends.

    Args:
        error: As it was caught; its traceback still says where it was raised.
    """
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__
    gc.collect()


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
    """Return why a job of a sweep would be refused, as far as its config decides.

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
        make_plan(run.model, run.model_name, lambda _: _NoScores())
    except LaminaError as error:
        return str(error)
    except _ScoresNeededError:
        return None
    return None


class _ScoresNeededError(Exception):
    """Which layers stay is decided by a scan, which is the job's to make."""


class _NoScores:
    """Stands where scores may be asked for."""

    def statistics(self) -> Statistics:
        """Refuse."""
        raise _ScoresNeededError

    def greedy(self, count: int) -> tuple[int, ...]:
        """Refuse."""
        raise _ScoresNeededError

    def taylor(self) -> tuple[float, ...]:
        """Refuse."""
        raise _ScoresNeededError


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
