"""Starts the processes of a run with torchrun, waits for them and reports the first failure."""

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lamina import errors
from lamina.errors import LaminaError, TrainingError
from lamina.launch.layout import Layout, rendezvous_address
from lamina.runtime import distributed
from lamina.runtime.console import repeating
from lamina.runtime.files import write_json
from lamina.runtime.interruption import FORWARDED, INTERRUPTING, handling, interrupt

ERRORS_FOLDER = ".ranks"
"""Folder in the run folder where several nodes exchange their error files."""

ERROR_FILE = "error.json"
"""torchrun's name for the file with the error that ended a process."""

END_SIGNALS = (*INTERRUPTING, signal.SIGQUIT)
"""Signals that torchrun forwards to the processes, unless this process already handles them."""

CLOSING_S = 30
"""Seconds from torchrun's SIGTERM to its SIGKILL, which ends a process that waits for another."""

SHARED_FOLDER_S = 5.0
"""Seconds until one node sees what another wrote to the shared folder."""

POLL_S = 1.0
"""Seconds between checks for other nodes' errors."""

REQUEUE_S = 60.0
"""Seconds to wait for SLURM's signal here after the processes have already acted on it."""


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """What each process of a run receives."""

    config: dict[str, Any]
    """The settled config, interpolations resolved."""
    settings: str
    """Hash of the composed config, for the record."""
    overrides: list[str]
    """The command line's overrides, for the record."""
    notes: list[str]
    """Decisions made for the run, for the record."""
    folder: str
    logging: dict[str, Any] | None
    """Hydra's job_logging, resolved; None to leave logging alone."""
    requeues: bool
    """Whether SLURM's signal requests a checkpoint and a requeue."""

    def dumps(self) -> str:
        """Return the spec as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> "WorkerSpec":
        """Parse what `dumps` returned."""
        return cls(**json.loads(text))


def start_processes(spec: WorkerSpec, layout: Layout) -> None:
    """Start the processes of a run and wait for them; the first failure ends all and is raised."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    failure, ended_by = None, None
    folder = node_folder(Path(spec.folder), layout)
    end_together = partial(_end_with_other_nodes, folder)
    with _forwarding_signals() as received, repeating(end_together, POLL_S):
        try:
            _launch(spec, layout, folder)
        except ChildFailedError as error:
            failure = error
        except SignalException as error:
            ended_by = error.sigval
        except KeyboardInterrupt:
            pass  # before the processes began
    reason = None
    if failure is not None and not received:
        _record_killed(failure, folder)
        if layout.nodes > 1:
            time.sleep(SHARED_FOLDER_S)
        reason = first_failure(folder.parent, Path(spec.folder), layout.processes)
    # If this node failed, other nodes still have to read why.
    if layout.nodes == 1 or reason is None:
        done = folder.parent if layout.nodes == 1 else folder.parents[1]
        shutil.rmtree(done, ignore_errors=True)
    if distributed.REQUEUE_SIGNAL in received:
        return  # the first node has requeued the job
    if received:
        interrupt(received[0], None)
    if reason is not None:
        raise reason from failure
    if ended_by == signal.SIGINT:
        raise KeyboardInterrupt
    if ended_by is not None:
        os.kill(os.getpid(), ended_by)


def await_requeue() -> None:
    """Wait for the signal that made the processes save; SLURM may signal another node first."""
    time.sleep(REQUEUE_S)
    raise TrainingError("the processes saved for a requeue, but this node received no signal")


@contextmanager
def explained_timeouts() -> Iterator[None]:
    """Name the config keys to change when submitit ends a job instead of requeueing it."""
    try:
        yield
    except Exception as error:
        # Already imported if submitit started the job; otherwise importing it would be slow.
        submitit = sys.modules.get("submitit.core.utils")
        if submitit is None or not isinstance(error, submitit.UncompletedJobError):
            raise
        raise TrainingError(
            "the job ran out of time more often than hydra.launcher.max_num_timeout allows; raise "
            "it or hydra.launcher.timeout_min: the same command with this hydra.sweep.dir resumes "
            "from the last checkpoint"
        ) from error


def record_failure(path: Path, rank: int, failure: BaseException | str) -> None:
    """Write the error or signal that ended a process, in torchrun's format.

    torch 2.13's `record` does not suffice: torchrun may kill a process in the middle of writing its
    file and then fail to parse it; times are whole seconds; the traceback goes to the console.
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
    """Write error files into this node's folder for processes that a signal killed."""
    first = min(process.timestamp for process in failure.failures.values())
    for rank, process in failure.failures.items():
        # torchrun itself ends the others once one has failed: by SIGTERM, then by SIGKILL.
        is_other = process.timestamp - first >= CLOSING_S or process.exitcode == -signal.SIGTERM
        if process.exitcode < 0 and not is_other:
            name = signal.Signals(-process.exitcode).name
            advice = ", often because memory ran out" if name == "SIGKILL" else ""
            record_failure(folder / f"{rank}.{ERROR_FILE}", rank, f"killed by {name}{advice}")


def first_failure(node_folders: Path, run_folder: Path, processes: int) -> LaminaError:
    """Return the error of the process that failed first, on any node.

    `node_folders` has one folder of error files for each node; `processes` counts those of all.
    """
    found = [json.loads(path.read_text())["message"] for path in _error_files(node_folders)]
    if not found:
        return TrainingError("a process ended without an error message")
    # A killed process has no traceback, and its death causes the other errors.
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
    where = f"the traceback is in {run_folder / 'train.log'}"
    return TrainingError(f"{who}{message.splitlines()[0]}; {where}")


def _error_files(node_folders: Path) -> list[Path]:
    try:
        return list(node_folders.rglob(f"*{ERROR_FILE}"))
    except FileNotFoundError:
        return []  # another node has succeeded and is removing the folder


def node_folder(run_folder: Path, layout: Layout) -> Path:
    """Make this node's folder; a single node's is temporary, since the run's disk may be full."""
    if layout.nodes == 1:
        node_folders = Path(tempfile.mkdtemp(prefix="lamina-"))
    else:
        # Requeued starts and other steps share a job's id, and must not find one another's files.
        names = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID")
        start = "-".join(os.environ.get(name, "0") for name in names)
        node_folders = run_folder / ERRORS_FOLDER / start
    own = node_folders / str(layout.node)
    own.mkdir(parents=True)
    return own


def _launch(spec: WorkerSpec, layout: Layout, folder: Path) -> None:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # torchrun's messages are meant for users who ran torchrun themselves.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    path = folder / "spec.json"
    path.write_text(spec.dumps())
    first = {0} if layout.node == 0 else set()
    quiet = {rank: Std.ALL for rank in range(layout.processes_per_node) if rank not in first}
    before = {signum: signal.getsignal(signum) for signum in END_SIGNALS}
    free = [s.name for s in before if before[s] in (signal.SIG_DFL, signal.default_int_handler)]
    config = LaunchConfig(
        min_nodes=layout.nodes,
        max_nodes=layout.nodes,
        nproc_per_node=layout.processes_per_node,
        run_id=f"lamina-{os.environ.get('SLURM_JOB_ID', os.getpid())}",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder), redirects=quiet),
        signals_to_handle=",".join(free),
        **_rendezvous(layout),
    )
    with handling(before):  # torchrun leaves its own behind
        elastic_launch(config, sys.executable)("-m", "lamina.launch.worker", str(path))


def _rendezvous(layout: Layout) -> dict[str, Any]:
    """Return where the processes meet: on a free port here, or on the first node."""
    if layout.nodes == 1:
        here = "127.0.0.1"
        return {"rdzv_backend": "c10d", "rdzv_endpoint": f"{here}:0", "local_addr": here}
    address, port = rendezvous_address()
    # "static" numbers the nodes like SLURM: rank 0 runs on the node that keeps the record.
    return {
        "rdzv_backend": "static",
        "rdzv_endpoint": f"{address}:{port}",
        "rdzv_configs": {"rank": layout.node},
    }


@contextmanager
def _forwarding_signals() -> Iterator[list[int]]:
    """Forward signals to the processes, which save; a second Ctrl-C kills them.

    After SLURM's signal, submitit's handler requeues the job and ends this process, except on nodes
    after the first. Yields the signals received so far.
    """
    requeue, received = distributed.REQUEUE_SIGNAL, list[int]()
    handled = [signum for signum in INTERRUPTING if signal.getsignal(signum) is interrupt]
    if callable(signal.getsignal(requeue)):
        handled.append(requeue)

    def _forward(signum: int, frame: Any) -> None:
        kills = bool(received) and signum == signal.SIGINT
        received.append(signum)
        processes = _processes()
        for process in processes:
            forwarded = requeue if signum == requeue else FORWARDED
            process.send_signal(signal.SIGKILL if kills else forwarded)
        if not processes and signum != requeue:
            interrupt(signum, frame)

    try:
        with handling(dict.fromkeys(handled, _forward)) as before:
            yield received
    finally:
        if requeue in received:
            before[requeue](requeue, None)


def _end_with_other_nodes(folder: Path) -> None:
    """End this node's processes if one of another node failed: they would wait for it forever."""
    if any(folder not in path.parents for path in _error_files(folder.parent)):
        for process in _processes():
            process.terminate()


def _processes() -> list[Any]:
    import psutil

    return [child for child in psutil.Process().children() if __package__ in str(child.cmdline())]
