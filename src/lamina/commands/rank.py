"""One of the processes of a run, started by torchrun: `python -m lamina.commands.rank JOB`."""

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from lamina.commands.failures import leave
from lamina.commands.job import Job
from lamina.errors import OutputError
from lamina.measure import ranks
from lamina.measure.results import Record


def main() -> None:
    """Run a job's share; what goes wrong is left where the process that started this one looks."""
    _die_with_parent()
    try:
        work(Job.loads(Path(sys.argv[1]).read_text()))
    except KeyboardInterrupt:
        sys.exit(1)  # who started this one says so
    except Exception as error:
        leave(error)
        sys.exit(1)


def work(job: Job) -> None:
    """Take part in a run."""
    if job.requeues:
        signal.signal(ranks.REQUEUE_SIGNAL, _leave_for_requeue)
    _prepare_torch()

    from hydra.core.utils import configure_log
    from hydra.utils import instantiate
    from omegaconf import OmegaConf
    from torch.distributed import destroy_process_group

    from lamina.config.paths import load_environment
    from lamina.pipeline import Pipeline

    load_environment()
    if ranks.is_first() and job.logging is not None:
        configure_log(OmegaConf.create(job.logging))
    run = instantiate(OmegaConf.create(job.config))
    record = Record(Path(job.folder), job.overrides)
    pipeline = ranks.in_turn("plan", lambda: Pipeline(run, record))
    try:
        pipeline.execute()
    except SystemExit:
        record.update(status="requeued")
        raise
    except Exception:
        with suppress(OutputError):
            record.write()
        raise
    record.write()
    if job.requeues:
        signal.signal(ranks.REQUEUE_SIGNAL, signal.SIG_IGN)
    destroy_process_group()


def _prepare_torch() -> None:
    """Give this process its share of the cores, before torch is imported, and quiet torch."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    share = max(1, cores // int(os.environ["LOCAL_WORLD_SIZE"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(share))
    # DDP warns that it looked for weights without a gradient, and found none.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def _leave_for_requeue(*_: object) -> None:
    """End this process; the one that started it has the job requeued."""
    # The signal may come more than once, and Python puts its handlers back while it ends.
    signal.signal(ranks.REQUEUE_SIGNAL, signal.SIG_IGN)
    sys.exit(0)


def _die_with_parent() -> None:
    """Let this process end with the one that started it: torchrun gives it a session of its own."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


if __name__ == "__main__":
    main()
