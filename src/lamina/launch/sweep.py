"""Follows a sweep: its planned jobs, its progress and its report."""

import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib import import_module
from itertools import chain
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from typing_extensions import override

from lamina.config import security
from lamina.config.binding import bind
from lamina.config.messages import COMPOSITION_ERRORS, no_value, too_many
from lamina.config.preflight import preflight, refuse_incomplete
from lamina.config.quoting import again, typed
from lamina.config.rules import scan_problems
from lamina.depth.plan import make_plan
from lamina.depth.selection import NoScores, ScoresNeededError
from lamina.errors import Ended, LaminaError, OutputError, reason_of
from lamina.measure.results import DRY_RUN_FILE, MULTIRUN_FILE, distinguishing
from lamina.measure.tasks.items import read_tasks
from lamina.measure.tasks.settings import TaskSettings
from lamina.runtime.console import console, printable
from lamina.runtime.files import disk_errors, refuse_unwritable, remove_links
from lamina.runtime.lock import locked
from lamina.runtime.paths import short_path
from lamina.runtime.yaml_text import refuse_unreadable
from lamina.units import format_duration
from lamina.weights.source import made_of

if TYPE_CHECKING:
    from rich.console import RenderableType

WRITTEN_BY_HYDRA = ("*.log", ".hydra*", ".hydra*/*", f"{MULTIRUN_FILE}*")
"""Patterns of files and folders, which Hydra would write through a link."""

JOB_FOLDER = "${hydra.job.num}"
"""Relative to the sweep's folder; reports and later starts find a job by it."""

QUEUEING_LAUNCHERS = ("slurm", "submitit_slurm")
"""Options of hydra/launcher whose jobs wait in a cluster's queue."""


def broken_line(config: DictConfig) -> str | None:
    """Name a value whose line break would begin a command in the script for sbatch."""
    launcher = OmegaConf.to_container(config.hydra.launcher, resolve=True)
    texts = {f"hydra.launcher.{key}": value for key, value in dict(launcher).items()}
    for key, value in {**texts, "hydra.sweep.dir": config.hydra.sweep.dir}.items():
        if isinstance(value, str) and len(value.splitlines()) > 1:
            return f"{key}={value!r}: use one line"
    return None


class Sweep(Callback):
    """Hydra's callback, in the process that started the sweep and in each job's."""

    started: ClassVar["Sweep | None"] = None
    """The sweep that this process started: after a failed launch Hydra does not call it again."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle for a cluster's worker without the state of this process."""
        return _sweep_in_worker, ()

    @override
    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        folder = Path(config.hydra.run.dir)
        with _refusals():
            refuse_unwritable(folder, "hydra.run.dir")
            remove_links(folder, *WRITTEN_BY_HYDRA)

    @override
    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        launcher = config.hydra.runtime.choices["hydra/launcher"]
        self.is_queued = launcher in QUEUEING_LAUNCHERS
        if absent := [tool for tool in ("srun", "sbatch") if self.is_queued and not which(tool)]:
            detected = f'Could not detect "{absent[0]}", are you indeed on a slurm cluster?'
            raise Ended(f"hydra/launcher={launcher}: {detected}")
        given = given_overrides(config)
        if found := list(filter(None, (*map(no_value, given), too_many(given)))):
            raise Ended("\n".join(found))
        if self.is_queued and (broken := broken_line(config)):
            raise Ended(broken)
        Sweep.started = self
        self.folder = Path(config.hydra.sweep.dir)
        self.planned = planned_jobs(config)
        if reason := known_before(config, self.planned, self.folder):
            raise Ended(reason)
        self.done = 0
        self.is_dry_run = config.dry_run
        self.ownership = ExitStack()
        with _refusals(), disk_errors(self.folder, "hydra.sweep.dir"):
            self.ownership.enter_context(locked(self.folder, "hydra.sweep.dir"))
            jobs = (f"*/{name}" for name in WRITTEN_BY_HYDRA)
            remove_links(self.folder, *WRITTEN_BY_HYDRA, *jobs)
            if self.is_dry_run:  # an earlier command, perhaps of another version, left some
                for path in self.folder.glob(f"*/{DRY_RUN_FILE}"):
                    path.unlink()
        self.began = time.monotonic()
        line = f"sweep folder: {short_path(self.folder)}, {len(self.planned)} jobs\n"
        sys.stderr.write(printable(line))
        if self.is_queued:
            # On a cluster without accounting submitit 1.5.4 warns at each poll of the queue; its
            # import sets the logger's level.
            import_module("submitit")
            logging.getLogger("submitit").setLevel(logging.ERROR)
            self._check_before_queueing(config)

    def _check_before_queueing(self, config: DictConfig) -> None:
        """Check every job before any is queued; end the command if none can run."""
        refused = 0
        for number, overrides in enumerate(self.planned):
            if reason := refusal(config, overrides, self.folder / str(number)):
                refused += 1
                sys.stderr.write(printable(f"job {number} cannot run: {reason}\n"))
        if refused == len(self.planned):
            self.ownership.close()
            raise Ended("no job of the sweep can run; nothing was submitted")

    @override
    def on_job_end(self, config: DictConfig, **_: Any) -> None:
        from lamina.report.reading import read_report
        from lamina.report.report_files import write_report

        if config.hydra.mode != RunMode.MULTIRUN or config.dry_run:
            return
        sweep, folder = Sweep.started, Path(config.hydra.sweep.dir)
        report = read_report([folder], lambda _: sweep.planned if sweep else recorded_jobs(folder))
        try:
            write_report(report, folder)
        except OutputError as error:
            sys.stderr.write(printable(f"error: {error}\n"))
        if sweep is not None:
            sweep.done += 1
            sweep._print_progress(sum(row.status == "failed" for row in report.rows[: sweep.done]))

    def _print_progress(self, failed: int) -> None:
        """Print the jobs done, running and failed since the command began, and the time left."""
        left = len(self.planned) - self.done
        seconds = (time.monotonic() - self.began) / self.done * left
        counts = {"done": self.done - failed, "running": int(left > 0), "failed": failed}
        line = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
        line = f"sweep of {len(self.planned)} jobs: {line}"
        sys.stderr.write(
            f"{line}, about {format_duration(seconds)} left\n" if left else f"{line}\n"
        )

    def close(self) -> str | None:
        """Print the sweep's table; return what went wrong, if anything."""
        from lamina.report.page.document import PAGE_FILE
        from lamina.report.reading import read_report
        from lamina.report.report_files import write_report
        from lamina.report.sweep_table import SweepTable

        if self.is_dry_run:
            return self._close_dry_run()
        report = read_report([self.folder], lambda _: self.planned)
        console(file=sys.stdout).print(SweepTable(report.ranked))
        with self.ownership:
            write_report(report, self.folder)
        sys.stdout.write(printable(f"{short_path(self.folder / PAGE_FILE)}\n"))
        wrong = [row for row in report.rows if not row.is_complete]
        if not wrong:
            return None
        named = ", ".join(f"{row.job} ({row.status})" for row in wrong)
        queued = "; some may still be queued (squeue, scancel)" if self.is_queued else ""
        command = again("hydra.sweep.dir", self.folder)
        return (
            f"{len(wrong)} of {len(report.rows)} jobs did not complete: {named}{queued}; to run "
            f"only these again: {command}"
        )

    def _close_dry_run(self) -> str | None:
        """Print what all jobs take; return which cannot run: those without a dry-run report."""
        from lamina.report.dry_run_report import sweep_totals

        self.ownership.close()
        found = {path.parent.name: path for path in self.folder.glob(f"*/{DRY_RUN_FILE}")}
        done, jobs = [json.loads(path.read_text()) for path in found.values()], len(self.planned)
        sys.stdout.write(f"{sweep_totals(done, jobs)}\n")
        wrong = [name for name in map(str, range(jobs)) if name not in found]
        summary = f"{len(wrong)} of {jobs} jobs cannot run: {', '.join(wrong)}; see above"
        return summary if wrong else None


@contextmanager
def _refusals() -> Iterator[None]:
    """End the command with a refusal: Hydra only warns of a callback's errors."""
    try:
        yield
    except OutputError as error:
        raise Ended(str(error)) from error


def _sweep_in_worker() -> Sweep:
    """Apply the command's security checks to the config that a worker composes."""
    security.install()
    return Sweep()


def close_sweep() -> str | None:
    """Close the sweep that this process started, if any; return what went wrong."""
    return Sweep.started.close() if Sweep.started is not None else None


def rebuild_report(folder: Path) -> "RenderableType":
    """Rewrite a sweep's report from its files alone; return its table."""
    from lamina.report.reading import read_report
    from lamina.report.report_files import write_report
    from lamina.report.sweep_table import SweepTable

    planned = recorded_jobs(folder)
    report = read_report([folder], lambda _: planned)
    write_report(report, folder)
    return SweepTable(report.ranked)


def refusal(config: DictConfig, overrides: Sequence[str], folder: Path) -> str | None:
    """Return why a job would be refused; unlike preflight, this reads a hub model's config.json."""
    job = _composed(config, overrides, folder)
    try:
        preflight(job)
        run = bind(job)
        protect, dtype = run.depth.protect, run.saved_dtype
        _check_tasks(tuple(run.evaluation.tasks), run.evaluation.task_settings)
        make_plan(run.model, run.model_name, lambda _: NoScores(), protect, dtype)
    except LaminaError as error:
        return str(error)
    except ScoresNeededError:
        pass  # the job itself scores the layers
    return None


@cache
def _check_tasks(names: tuple[str, ...], settings: TaskSettings) -> None:
    """Read the items of a sweep's tasks, which are usually those of all its jobs."""
    read_tasks(names, settings)


def known_before(config: DictConfig, planned: Sequence[Sequence[str]], folder: Path) -> str | None:
    """Return what would fail only after other jobs have run; costs nothing in a usual sweep."""
    subfolder = OmegaConf.to_container(config.hydra.sweep, resolve=False)["subdir"]
    if subfolder != JOB_FOLDER:
        return f"hydra.sweep.subdir={subfolder}: leave it out: a job's folder is its number"
    own, given = OmegaConf.to_container(config, resolve=False), {*chain.from_iterable(planned)}
    keys = {override.partition("=")[0] for override in given}
    is_shared = "${run_dir}" not in str(own["output_dir"]) or "output_dir" in keys
    scans = {"scan.tokens", "max_seq_length", "selector"} & keys
    first: dict[tuple[Path, str], int] = {}
    for number, overrides in enumerate(planned if is_shared or scans else ()):
        job = _composed(config, overrides, folder / str(number))
        try:
            refuse_incomplete(job)
            run = bind(job)
            problem = next(scan_problems(run), None)
        except LaminaError:
            continue  # the job itself says so
        place = Path(run.output_dir).expanduser().resolve(), run.model.model_type
        other = first.setdefault(place, number)
        if other != number:
            fix = typed("output_dir=${run_dir}/checkpoints")
            return (
                f"output_dir={run.output_dir}: jobs {other} and {number} would share it: set {fix}"
            )
        if problem:
            return f"job {number}: {problem}"
    return None


def _composed(config: DictConfig, overrides: Sequence[str], folder: Path) -> DictConfig:
    """Compose a job's config, with its folder."""
    loader = GlobalHydra.instance().config_loader()
    job: DictConfig = loader.load_sweep_config(config, list(overrides))
    with open_dict(job):
        job.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(job)
        del job["hydra"]
    return job


def planned_jobs(config: DictConfig) -> list[list[str]]:
    """Return the overrides of every job that Hydra's basic sweeper derives from a command line."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    return BasicSweeper.split_arguments(given_overrides(config), None)[0]


def recorded_jobs(folder: Path) -> list[list[str]]:
    """Return the jobs of a sweep by its folder; none without its file.

    Raises ModelError if the file is damaged.
    """
    if not (folder / MULTIRUN_FILE).is_file():
        return []
    security.install()  # the file may be someone else's, and refer to a secret
    with made_of(folder / MULTIRUN_FILE):
        refuse_unreadable(folder / MULTIRUN_FILE)
        try:
            config = OmegaConf.load(folder / MULTIRUN_FILE)
            if reason := too_many(given_overrides(config)):
                raise ValueError(reason)
            return planned_jobs(config)
        except COMPOSITION_ERRORS as error:
            raise ValueError(reason_of(error)) from error


def own_overrides(folder: Path, overrides: Sequence[str]) -> list[str]:
    """Return the overrides that a job's sweep does not give to all of its jobs."""
    sweep = Sweep.started
    planned = recorded_jobs(folder.parent) if sweep is None else sweep.planned
    return distinguishing([overrides, *planned])[0] if len(planned) > 1 else []


def given_overrides(config: DictConfig) -> list[Override]:
    """Return a sweep's overrides; for experiment=glob(...) its folders of configs are looked up."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_search_path_impl import ConfigSearchPathImpl

    given = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    given += OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    Plugins.instance()  # registers the kinds of sources, where Hydra itself has not run
    path = ConfigSearchPathImpl()
    for source in config.hydra.runtime.config_sources:
        path.append(source.provider, f"{source.schema}://{source.path}")
    return OverridesParser.create(ConfigLoaderImpl(path)).parse_overrides(given)
