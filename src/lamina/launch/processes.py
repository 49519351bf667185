"""Starts the processes of a run with torchrun, waits for them, and says what ended them."""

import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lamina.errors import TrainingError
from lamina.launch.failures import note_killed, notes, reason
from lamina.launch.job import Job
from lamina.launch.layout import Layout, meeting_point
from lamina.runtime.distributed import REQUEUE_SIGNAL

FOLDER = ".ranks"
"""In the run folder: what the processes of several nodes leave for those that started them."""

ENDING = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
"""Signals that end the processes too, unless somebody else has taken them."""

SHARED_FOLDER_S = 5.0
"""Seconds until what one node wrote is seen on another."""

POLL_S = 1.0
"""Seconds between two looks at what the other nodes have left."""

REQUEUE_S = 60.0
"""Seconds for which processes that have saved may be ahead of the signal to the one that asked."""


def start(job: Job, layout: Layout) -> None:
    """Run a job in processes of its own.

    Args:
        job: What they are to do.
        layout: How many, and where.

    Raises:
        LaminaError: One of them failed, and with it all.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    failure, ended_by = None, None
    folder = _own_folder(Path(job.folder), layout)
    with _requeued_after() as asked, _kept_handlers() as taken, _ended_with(folder):
        try:
            _launch(job, layout, folder, taken)
        except ChildFailedError as error:
            failure = error
        except SignalException as error:
            ended_by = error.sigval
    ended = None
    if failure is not None and not asked:
        note_killed(failure, folder)
        if layout.nodes > 1:
            time.sleep(SHARED_FOLDER_S)
        ended = reason(folder.parent, Path(job.folder), layout.processes)
    # On several nodes another one may still have to read why this one failed.
    if layout.nodes == 1 or ended is None:
        done = folder.parent if layout.nodes == 1 else folder.parents[1]
        shutil.rmtree(done, ignore_errors=True)
    if asked:
        return  # the first node has had the job requeued
    if ended is not None:
        raise ended from failure
    if ended_by == signal.SIGINT:
        raise KeyboardInterrupt
    if ended_by is not None:
        os.kill(os.getpid(), ended_by)


def wait_for_requeue() -> None:
    """Wait for the signal that has made the processes save and end, on another node at first.

    Raises:
        TrainingError: It does not come.
    """
    time.sleep(REQUEUE_S)
    raise TrainingError("the processes have saved for a requeue, but no signal has come here")


@contextmanager
def said_if_not_requeued() -> Iterator[None]:
    """Name the keys that decide it where submitit ends the job instead of requeueing it.

    Raises:
        TrainingError: The job's time was over more often than is allowed.
    """
    try:
        yield
    except Exception as error:
        # Imported where it has started the job, and slow to import where it has not.
        submitit = sys.modules.get("submitit.core.utils")
        if submitit is None or not isinstance(error, submitit.UncompletedJobError):
            raise
        raise TrainingError(
            "the job's time was over more often than hydra.launcher.max_num_timeout allows; allow "
            "more, or a longer hydra.launcher.timeout_min: the same command with this "
            "hydra.sweep.dir goes on from what was saved"
        ) from error


def _own_folder(folder: Path, layout: Layout) -> Path:
    """Make this node's folder; on one node it stands elsewhere, for a disk may be full."""
    if layout.nodes == 1:
        above = Path(tempfile.mkdtemp(prefix="lamina-"))
    else:
        # A requeued job has its id again, and must not find what its last start left.
        start = "-".join(
            os.environ.get(f"SLURM_{name}", "0") for name in ("JOB_ID", "RESTART_COUNT")
        )
        above = folder / FOLDER / start
    own = above / str(layout.node)
    own.mkdir(parents=True)
    return own


def _launch(job: Job, layout: Layout, folder: Path, signals: list[str]) -> None:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What it says is for people who gave the torchrun command.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    path = folder / "job.json"
    path.write_text(job.dumps())
    first = {0} if layout.node == 0 else set()
    quiet = {rank: Std.ALL for rank in range(layout.per_node) if rank not in first}
    config = LaunchConfig(
        min_nodes=layout.nodes,
        max_nodes=layout.nodes,
        nproc_per_node=layout.per_node,
        run_id=f"lamina-{os.environ.get('SLURM_JOB_ID', os.getpid())}",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder), redirects=quiet),
        signals_to_handle=",".join(signals),
        **_rendezvous(layout),
    )
    elastic_launch(config, sys.executable)("-m", "lamina.launch.worker", str(path))


def _rendezvous(layout: Layout) -> dict[str, Any]:
    """Say where the processes meet: on a free port here, or on the first node."""
    if layout.nodes == 1:
        here = "127.0.0.1"
        return {"rdzv_backend": "c10d", "rdzv_endpoint": f"{here}:0", "local_addr": here}
    address, port = meeting_point()
    # Static, for it numbers the nodes as SLURM does: rank 0 is where task 0 keeps the record.
    ours = {"rank": layout.node}
    endpoint = f"{address}:{port}"
    return {"rdzv_backend": "static", "rdzv_endpoint": endpoint, "rdzv_configs": ours}


@contextmanager
def _kept_handlers() -> Iterator[list[str]]:
    """Give the names of the signals that torchrun may take, and put their handlers back."""
    before = {name: signal.getsignal(getattr(signal, name)) for name in ENDING}
    free = (signal.SIG_DFL, signal.default_int_handler)
    try:
        yield [name for name, handler in before.items() if handler in free]
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


@contextmanager
def _requeued_after() -> Iterator[list[int]]:
    """Pass the cluster's signal on to the processes; once they have saved, let it be answered.

    submitit's handler requeues the job and ends this process, but for nodes after the first.

    Yields:
        The signals that have come.
    """
    answer, came = signal.getsignal(REQUEUE_SIGNAL), list[int]()
    if not callable(answer):
        yield came
        return

    def pass_on(signum: int, frame: Any) -> None:
        came.append(signum)
        for process in _processes():
            process.send_signal(REQUEUE_SIGNAL)

    signal.signal(REQUEUE_SIGNAL, pass_on)
    try:
        yield came
    finally:
        signal.signal(REQUEUE_SIGNAL, answer)
        if came:
            answer(REQUEUE_SIGNAL, None)


@contextmanager
def _ended_with(folder: Path) -> Iterator[None]:
    """End this node's processes when one of another node's has failed: they would wait for it."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL_S):
            if notes(folder.parent, but=folder):
                for process in _processes():
                    process.terminate()
                return

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()


def _processes() -> list[Any]:
    import psutil

    return [child for child in psutil.Process().children() if __package__ in str(child.cmdline())]
