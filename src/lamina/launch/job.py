"""Runs one composed config: settles it, decides its processes, and keeps its record."""

import logging
import signal
from datetime import timedelta
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lamina.config.backend_choice import choose_backend, needs_own_process
from lamina.config.preflight import preflight
from lamina.dry_run import print_dry_run
from lamina.errors import ConfigError
from lamina.launch.layout import Layout, is_another_node, layout, use_one_device
from lamina.launch.processes import WorkerSpec, explained_timeouts, start, wait_for_requeue
from lamina.measure.results import Record
from lamina.run import run
from lamina.runtime import distributed
from lamina.runtime.lock import owned

KEY = "lamina/spec"
"""The spec's key in torchrun's store."""

logger = logging.getLogger(__name__)


def run_job(config: DictConfig, folder: Path, overrides: list[str]) -> Record | None:
    """Run a job; return its record, which the first node keeps.

    Raises:
        LaminaError: The config is refused or the run fails.
    """
    if is_another_node():
        start(*prepare(config, folder, overrides))
        return None
    with owned(folder, "hydra.run.dir"):
        record = Record(folder, overrides)
        with record.outcome(), explained_timeouts():
            spec, found = prepare(config, folder, overrides)
            record.content["notes"] = spec.notes
            isolated = needs_own_process(config)
            if isolated:
                _ = instantiate(config).plan  # scores the layers here, where nothing is patched
            if isolated or found.has_to_start:
                _start(spec, found, record)
            else:
                if found.processes > 1:
                    _announce(spec)
                run(instantiate(config), record)
    return record


def dry_run_job(config: DictConfig, folder: Path, overrides: list[str]) -> None:
    """Do a dry run of a job in one process, here if its backend allows it.

    Raises:
        LaminaError: The config is refused, or the run could not work.
    """
    spec, found = prepare(config, folder, overrides)
    use_one_device()
    if needs_own_process(config):
        start(spec, found)
    else:
        print_dry_run(config, folder, found.processes)


def prepare(config: DictConfig, folder: Path, overrides: list[str]) -> tuple[WorkerSpec, Layout]:
    """Check a config, decide its processes, and settle its backend in place.

    Raises:
        ConfigError: The config cannot run here.
    """
    preflight(config)
    found = layout(config.distributed, config.parallel)
    notes = choose_backend(config, found.processes)
    if found.node == 0:
        for note in notes:
            logger.info("%s", note)
    if found.processes == 1:
        use_one_device()
    logs = HydraConfig.get().job_logging
    spec = WorkerSpec(
        config=OmegaConf.to_container(config, resolve=True),
        overrides=overrides,
        notes=notes,
        folder=str(folder),
        logging=OmegaConf.to_container(logs, resolve=True) if logs else None,
        requeues=callable(signal.getsignal(distributed.REQUEUE_SIGNAL)),
    )
    return spec, found


def _start(spec: WorkerSpec, found: Layout, record: Record) -> None:
    try:
        start(spec, found)
    finally:
        record.adopt()  # the first of the processes kept it
    if record.content["status"] == "requeued":
        wait_for_requeue()


def _announce(spec: WorkerSpec) -> None:
    """Hand the spec to the other processes of a user's own torchrun.

    Raises:
        ConfigError: The run is a job of a sweep.
    """
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        raise ConfigError(
            "--multirun starts the processes of each job itself: leave torchrun out, and give "
            "distributed=NUMBER"
        )
    distributed.store().set(KEY, spec.dumps())


def awaited_spec() -> WorkerSpec:
    """Wait for the spec that the first process of a user's own torchrun announces."""
    store = distributed.store()
    store.wait([KEY], timedelta(hours=1))
    return WorkerSpec.loads(store.get(KEY).decode())
