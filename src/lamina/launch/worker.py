"""One process of a run, started by torchrun: `python -m lamina.launch.worker SPEC`."""

import ctypes
import json
import logging
import os
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.utils import configure_log
from omegaconf import DictConfig, OmegaConf

from lamina.config.binding import bind
from lamina.dry_run import print_dry_run
from lamina.errors import OutputError
from lamina.launch.processes import WorkerSpec, record_failure
from lamina.launch.sweep import own_overrides
from lamina.measure.results import Record
from lamina.run import run
from lamina.runtime import distributed
from lamina.runtime.console import PrintableRecord, guard_streams
from lamina.runtime.interruption import FORWARDED, interrupt
from lamina.runtime.paths import load_environment

TORCHRUN_VARIABLES = (
    "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK GROUP_WORLD_SIZE ROLE_RANK ROLE_NAME "
    "ROLE_WORLD_SIZE MASTER_ADDR MASTER_PORT"
).split()
"""Environment variables in which torchrun gives a process its place among the others."""


def main() -> None:
    """Do this process's share of a run; leave an error to the process that started it."""
    _die_with_parent()
    guard_streams()
    try:
        work(WorkerSpec.loads(Path(sys.argv[1]).read_text()))
    except KeyboardInterrupt:
        sys.exit(1)
    # Whatever it is, the process that started this one reports it.
    except Exception as error:
        record_failure(Path(os.environ["TORCHELASTIC_ERROR_FILE"]), distributed.rank(), error)
        sys.exit(1)


def work(spec: WorkerSpec) -> None:
    """Do this process's share of the run that a spec describes."""
    if spec.requeues:
        signal.signal(distributed.REQUEUE_SIGNAL, _exit_for_requeue)
    signal.signal(FORWARDED, interrupt)
    if distributed.world_size() == 1:
        for name in TORCHRUN_VARIABLES:  # libraries would wrap a lone process's model for several
            os.environ.pop(name, None)
    else:
        _prepare_torch()
    load_environment()
    logging.setLogRecordFactory(PrintableRecord)
    if distributed.is_first() and spec.logging is not None:
        configure_log(_literal(spec.logging))
    config, folder = _literal(spec.config), Path(spec.folder)
    bind(config.backend).prepare(folder)
    if config.dry_run:
        print_dry_run(config, folder, processes=1)
    else:
        _execute(spec, config)


def _execute(spec: WorkerSpec, config: Any) -> None:
    experiment = bind(config)
    folder = Path(spec.folder)
    own = own_overrides(folder, spec.overrides)
    record = Record(folder, spec.overrides, spec.settings, own)
    record.content["notes"] = spec.notes
    try:
        with experiment.backend.muted():
            run(experiment, record)
    except SystemExit:
        record.update(status="requeued")
        raise
    # Whatever failed, the notes survive; the process that started this one reports the error.
    except (Exception, KeyboardInterrupt):
        with suppress(OutputError):
            record.write()
        raise
    record.write()
    if spec.requeues:
        signal.signal(distributed.REQUEUE_SIGNAL, signal.SIG_IGN)
    if distributed.world_size() > 1:
        from torch.distributed import destroy_process_group

        destroy_process_group()


def _literal(resolved: dict[str, Any]) -> DictConfig:
    """Return a resolved config; OmegaConf would resolve what follows from `${` in it again."""
    text = re.sub(r"(\\*)\$\{", r"\1\1\\\\${", json.dumps(resolved))
    return OmegaConf.create(json.loads(text))


def _prepare_torch() -> None:
    """Give this process its share of the cores, and quiet torch; must precede its import."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    share = max(1, cores // int(os.environ["LOCAL_WORLD_SIZE"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(share))
    # DDP warns when it searched for weights without gradients and found none.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def _exit_for_requeue(*_: object) -> None:
    """End this process; the one that started it requeues the job."""
    # The signal may come again, and Python restores its handlers while it exits.
    signal.signal(distributed.REQUEUE_SIGNAL, signal.SIG_IGN)
    sys.exit(0)


def _die_with_parent() -> None:
    """Die with the parent process: torchrun gives this process its own session."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


if __name__ == "__main__":
    main()
