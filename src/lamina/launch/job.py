"""Runs one composed config: checks it, decides its backend and processes, keeps its record."""

import logging
import os
import signal
import sys
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lamina.config.backend_choice import choose_backend, needs_own_process
from lamina.config.binding import bind
from lamina.config.preflight import preflight
from lamina.dry_run import print_dry_run
from lamina.errors import ConfigError
from lamina.launch.layout import Layout, decide_layout, is_later_node, use_one_device
from lamina.launch.processes import WorkerSpec, await_requeue, explained_timeouts, start_processes
from lamina.launch.sweep import own_overrides
from lamina.measure.results import Record
from lamina.run import run
from lamina.runtime import distributed
from lamina.runtime.console import printable
from lamina.runtime.device import has_gpu
from lamina.runtime.lock import locked
from lamina.runtime.paths import short_path

SPEC_KEY = "lamina/spec"
"""Key of the WorkerSpec in torchrun's store."""

SHOWN = ("experiment", "model", "adapter", "data")
"""Groups whose options the first lines name."""

logger = logging.getLogger(__name__)


def run_job(config: DictConfig, folder: Path, overrides: list[str]) -> dict[str, Any] | None:
    """Run a job, unless an earlier start completed it; return result.json's content.

    None for a job that a sweep's earlier start completed, and on nodes after the first.
    """
    settings = _digest(config)
    if is_later_node():
        if Record(folder, overrides, settings).completed_before() is None:
            start_processes(*prepare(config, folder, overrides))
        return None
    with locked(folder, "hydra.run.dir"):
        record = Record(folder, overrides, settings, own_overrides(folder, overrides))
        before = record.completed_before()
        # The other processes of a user's own torchrun wait for the first to publish its spec.
        if before is not None and distributed.world_size() == 1:
            job = HydraConfig.get()
            is_alone = job.mode == RunMode.RUN
            named = str(folder) if is_alone else f"job {job.job.num}"
            sys.stderr.write(printable(f"{named} is already complete\n"))
            return before if is_alone else None
        with record.outcome(), explained_timeouts():
            spec, layout = prepare(config, folder, overrides)
            record.content["notes"] = spec.notes
            isolated = needs_own_process(config)
            if isolated:
                _ = bind(config).plan  # scores the layers here, where nothing is patched
            if isolated or layout.must_start:
                try:
                    start_processes(spec, layout)
                finally:
                    record.adopt()  # the first of those processes wrote it
                if record.content["status"] == "requeued":
                    await_requeue()
            else:
                if layout.processes > 1:
                    _publish(spec)
                run(bind(config), record)
    return record.content


def dry_run_job(config: DictConfig, folder: Path, overrides: list[str]) -> None:
    """Dry-run a job in one process: this one, unless its backend needs its own."""
    spec, layout = prepare(config, folder, overrides)
    use_one_device()
    if needs_own_process(config):
        start_processes(spec, layout)
    else:
        print_dry_run(config, folder, layout.processes)


def prepare(config: DictConfig, folder: Path, overrides: list[str]) -> tuple[WorkerSpec, Layout]:
    """Check a config, decide its processes, and choose its backend in place."""
    settings = _digest(config)
    preflight(config)
    layout = decide_layout(config.distributed, config.parallel)
    if layout.node == 0:
        _announce(config, folder, layout.processes)
    notes = choose_backend(config, layout.processes)
    if layout.node == 0:
        for note in notes:
            logger.info("%s", note)
    if layout.processes == 1:
        use_one_device()
    logs = HydraConfig.get().job_logging
    spec = WorkerSpec(
        config=OmegaConf.to_container(config, resolve=True),
        settings=settings,
        overrides=overrides,
        notes=notes,
        folder=str(folder),
        logging=OmegaConf.to_container(logs, resolve=True) if logs else None,
        requeues=callable(signal.getsignal(distributed.REQUEUE_SIGNAL)),
    )
    return spec, layout


def _digest(config: DictConfig) -> str:
    # Not resolved: the folder may have moved.
    return sha256(OmegaConf.to_yaml(config).encode()).hexdigest()


def _announce(config: DictConfig, folder: Path, processes: int) -> None:
    """Say where the run and its logs are, and what it does, before anything slow is imported."""
    logs, loggers = config.logging_dir, ", ".join(filter(config.logger.get, config.logger))
    logs = f"{short_path(Path(logs))} ({loggers})" if loggers else "none"
    logger.info("run folder: %s; logs: %s", short_path(folder), logs)
    choices, kind = HydraConfig.get().runtime.choices, "dry run" if config.dry_run else "runs"
    named = (f"{name}={choices[name]}" for name in SHOWN if choices.get(name))
    logger.info("%s: %s", kind, ", ".join((f"model_name={config.model_name}", *named)))
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) and not has_gpu():
        number = "one process" if processes == 1 else f"{processes} processes"
        logger.info("CUDA_VISIBLE_DEVICES=%s, but there is no GPU: %s on the CPU", given, number)


def _publish(spec: WorkerSpec) -> None:
    """Hand the spec to the other processes of a user's own torchrun; refuse a sweep."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        raise ConfigError(
            "--multirun starts the processes of each job itself: leave torchrun out, and set "
            "distributed=NUMBER"
        )
    distributed.store().set(SPEC_KEY, spec.dumps())


def wait_for_spec() -> WorkerSpec:
    """Wait for the spec that the first process of a user's own torchrun publishes."""
    store = distributed.store()
    store.wait([SPEC_KEY], timedelta(hours=1))
    return WorkerSpec.loads(store.get(SPEC_KEY).decode())
