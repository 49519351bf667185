"""Starts the processes of a run with torchrun, waits for them and reports the first failure."""

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lamina import errors
from lamina.errors import LaminaError, TrainingError
from lamina.launch.layout import Layout, meeting_point
from lamina.runtime.distributed import REQUEUE_SIGNAL
from lamina.runtime.files import write_json

FOLDER = ".ranks"
"""In the run folder of a run on several nodes: their error files."""

ERROR_FILE = "error.json"
"""torchrun's name for what ended a process."""

END_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
"""Signals that torchrun passes on to the processes, unless they already have a handler."""

SHARED_FOLDER_S = 5.0
"""Seconds until one node sees what another has written."""

POLL_S = 1.0
"""Seconds between two looks for another node's errors."""

REQUEUE_S = 60.0
"""Seconds by which saved processes may precede the signal to the process that started them."""


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """What each process of a run receives."""

    config: dict[str, Any]
    """The settled config, interpolations resolved."""

    overrides: list[str]
    """The command line's overrides, for the record."""

    notes: list[str]
    """What was decided for the run, for the record."""

    folder: str
    """The run folder."""

    logging: dict[str, Any] | None
    """Hydra's job_logging, resolved; None if it is off."""

    requeues: bool
    """Whether SLURM's signal requests a checkpoint and a requeue."""

    def dumps(self) -> str:
        """Return the JSON that `loads` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> "WorkerSpec":
        """Read the JSON that `dumps` returned."""
        return cls(**json.loads(text))


def start(spec: WorkerSpec, layout: Layout) -> None:
    """Run the processes of a run, and wait for them.

    Raises:
        LaminaError: A process failed, which ended the others.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    failure, ended_by = None, None
    folder = _node_folder(Path(spec.folder), layout)
    with _passing_on_requeue() as requeued, _kept_handlers() as free, _watching(folder):
        try:
            _launch(spec, layout, folder, free)
        except ChildFailedError as error:
            failure = error
        except SignalException as error:
            ended_by = error.sigval
    reason = None
    if failure is not None and not requeued:
        _record_killed(failure, folder)
        if layout.nodes > 1:
            time.sleep(SHARED_FOLDER_S)
        reason = first_failure(folder.parent, Path(spec.folder), layout.processes)
    # With several nodes another one may still have to read why this one failed.
    if layout.nodes == 1 or reason is None:
        done = folder.parent if layout.nodes == 1 else folder.parents[1]
        shutil.rmtree(done, ignore_errors=True)
    if requeued:
        return  # the first node has requeued the job
    if reason is not None:
        raise reason from failure
    if ended_by == signal.SIGINT:
        raise KeyboardInterrupt
    if ended_by is not None:
        os.kill(os.getpid(), ended_by)


def wait_for_requeue() -> None:
    """Wait for the signal that made the processes save; another node may get it first.

    Raises:
        TrainingError: The signal does not come.
    """
    time.sleep(REQUEUE_S)
    raise TrainingError("the processes saved for a requeue, but this node received no signal")


@contextmanager
def explained_timeouts() -> Iterator[None]:
    """Name the config keys to change where submitit ends a job instead of requeueing it.

    Raises:
        TrainingError: The job ran out of time more often than is allowed.
    """
    try:
        yield
    except Exception as error:
        # submitit is already imported where it started the job, and slow to import elsewhere.
        submitit = sys.modules.get("submitit.core.utils")
        if submitit is None or not isinstance(error, submitit.UncompletedJobError):
            raise
        raise TrainingError(
            "the job ran out of time more often than hydra.launcher.max_num_timeout allows; raise "
            "it or hydra.launcher.timeout_min: the same command with this hydra.sweep.dir resumes "
            "from the last checkpoint"
        ) from error


def record_failure(path: Path, rank: int, failure: BaseException | str) -> None:
    """Write what ended a process, an error or a signal, in torchrun's form.

    torch 2.13's `record` does not do: torchrun may end a process that is halfway through its file,
    and then fails to parse it; times are whole seconds; and the traceback goes to the console.
    """
    message, kind, trace = str(failure), None, ""
    if isinstance(failure, BaseException):
        trace = "".join(traceback.format_exception(failure))
        if isinstance(failure, LaminaError):
            kind = type(failure).__name__
        else:
            message = f"{type(failure).__name__}: {failure}"
    details = {"py_callstack": trace, "timestamp": str(int(time.time()))}
    note = {"message": message, "kind": kind, "extraInfo": details, "rank": rank}
    write_json(path, {"message": {**note, "time": time.time()}})


def _record_killed(failure: Any, folder: Path) -> None:
    """Write the error files of processes that died by a signal and so could not do it.

    Args:
        failure: torchrun's ChildFailedError.
        folder: This node's.
    """
    for rank, process in failure.failures.items():
        # SIGTERM is torchrun's, after another process has failed.
        if process.exitcode < 0 and process.exitcode != -signal.SIGTERM:
            name = signal.Signals(-process.exitcode).name
            advice = ", often because memory ran out" if name == "SIGKILL" else ""
            record_failure(folder / f"{rank}.{ERROR_FILE}", rank, f"killed by {name}{advice}")


def first_failure(above: Path, folder: Path, processes: int) -> LaminaError:
    """Return the error of the process that failed first, on any node.

    Args:
        above: Holds one folder of error files for each node.
        folder: The run folder.
        processes: Number of processes on all nodes.
    """
    found = [json.loads(path.read_text())["message"] for path in _error_files(above)]
    if not found:
        return TrainingError("a process ended without an error message")
    # A killed process has no traceback, and its death precedes the errors that it causes.
    first = min(found, key=lambda note: (note["extraInfo"]["py_callstack"] != "", note["time"]))
    message, trace = first["message"], first["extraInfo"]["py_callstack"]
    if first["kind"]:
        kind: type[LaminaError] = getattr(errors, first["kind"])
        return kind(message)
    who = f"rank {first['rank']}: " if processes > 1 else ""
    if not trace:
        return TrainingError(f"{who or 'the process was '}{message}")
    # The root logger's handlers write to the log file and leave the console alone.
    logging.getLogger("rank").warning("rank %d\n%s", first["rank"], trace)
    where = f"the traceback is in {folder / 'train.log'}"
    return TrainingError(f"{who}{message.splitlines()[0]}; {where}")


def _error_files(above: Path) -> list[Path]:
    try:
        return list(above.rglob(f"*{ERROR_FILE}"))
    except FileNotFoundError:
        return []  # another node has succeeded and is removing the folder


def _node_folder(folder: Path, layout: Layout) -> Path:
    """Make this node's folder; a single node's lies in the temporary folder: a disk may be full."""
    if layout.nodes == 1:
        above = Path(tempfile.mkdtemp(prefix="lamina-"))
    else:
        # A requeued job keeps its id and must not find the files of its last start.
        names = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT")
        above = folder / FOLDER / "-".join(os.environ.get(name, "0") for name in names)
    own = above / str(layout.node)
    own.mkdir(parents=True)
    return own


def _launch(spec: WorkerSpec, layout: Layout, folder: Path, signals: list[str]) -> None:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # torchrun's messages address people who typed the torchrun command.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    path = folder / "spec.json"
    path.write_text(spec.dumps())
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
    # Static numbers the nodes as SLURM does: rank 0 is on the node whose task keeps the record.
    return {
        "rdzv_backend": "static",
        "rdzv_endpoint": f"{address}:{port}",
        "rdzv_configs": {"rank": layout.node},
    }


@contextmanager
def _kept_handlers() -> Iterator[list[str]]:
    """Yield the names of the signals that torchrun may handle; restore all handlers."""
    before = {name: signal.getsignal(getattr(signal, name)) for name in END_SIGNALS}
    free = (signal.SIG_DFL, signal.default_int_handler)
    try:
        yield [name for name, handler in before.items() if handler in free]
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


@contextmanager
def _passing_on_requeue() -> Iterator[list[int]]:
    """Pass SLURM's signal on to the processes and, once they have saved, to submitit's handler.

    That handler requeues the job and ends this process, except on nodes after the first.

    Yields:
        The signals received so far.
    """
    answer, received = signal.getsignal(REQUEUE_SIGNAL), list[int]()
    if not callable(answer):
        yield received
        return

    def pass_on(signum: int, frame: Any) -> None:
        received.append(signum)
        for process in _processes():
            process.send_signal(REQUEUE_SIGNAL)

    signal.signal(REQUEUE_SIGNAL, pass_on)
    try:
        yield received
    finally:
        signal.signal(REQUEUE_SIGNAL, answer)
        if received:
            answer(REQUEUE_SIGNAL, None)


@contextmanager
def _watching(folder: Path) -> Iterator[None]:
    """End this node's processes once another node's has failed: they would wait for it forever."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL_S):
            if any(folder not in path.parents for path in _error_files(folder.parent)):
                for process in _processes():
                    process.terminate()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _processes() -> list[Any]:
    import psutil

    return [child for child in psutil.Process().children() if __package__ in str(child.cmdline())]
