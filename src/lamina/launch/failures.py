"""What failed processes leave behind, and which of them failed first."""

import json
import logging
import os
import signal
import time
import traceback
from pathlib import Path
from typing import Any

from lamina import errors
from lamina.errors import LaminaError, TrainingError
from lamina.runtime import distributed
from lamina.runtime.files import write_json


def leave(error: BaseException) -> None:
    """Write what ended this process, in torchrun's form, with the exact time."""
    message = str(error) if isinstance(error, LaminaError) else f"{type(error).__name__}: {error}"
    said = {
        "message": message,
        "extraInfo": {"py_callstack": traceback.format_exc(), "timestamp": str(int(time.time()))},
        "kind": type(error).__name__ if isinstance(error, LaminaError) else None,
        "rank": distributed.rank(),
        "killed": False,
        "at": time.time(),
    }
    write_json(Path(os.environ["TORCHELASTIC_ERROR_FILE"]), {"message": said})


def note_killed(failure: Any, folder: Path) -> None:
    """Leave a note for each process that could not: it comes before what the others ran into.

    Args:
        failure: torchrun's ChildFailedError.
        folder: Where to.
    """
    for rank, process in failure.failures.items():
        # Who ended by SIGTERM was stopped because another one had failed.
        if process.exitcode < 0 and process.exitcode != -signal.SIGTERM:
            name = signal.Signals(-process.exitcode).name
            advice = "; often the machine's memory was short" if name == "SIGKILL" else ""
            note = {
                "message": f"ended by {name}{advice}",
                "extraInfo": {"py_callstack": ""},
                "kind": None,
                "rank": rank,
                "killed": True,
                "at": time.time(),
            }
            write_json(folder / f"{rank}.error.json", {"message": note})


def notes(folder: Path, but: Path | None = None) -> list[dict[str, Any]]:
    """Return what failed processes left below a folder.

    Args:
        folder: With one folder for each node.
        but: The one of them to leave out.
    """
    try:
        paths = [path for path in folder.rglob("*error.json") if but not in path.parents]
        return [json.loads(path.read_text())["message"] for path in paths]
    except FileNotFoundError:
        return []  # another node has succeeded, and cleans up


def reason(left: Path, folder: Path, processes: int) -> LaminaError:
    """Return the error of the process that failed first, on whichever node it was.

    Args:
        left: The folder with what each of them left.
        folder: The run folder.
        processes: That shared the run.
    """
    found = notes(left)
    if not found:
        return TrainingError("a process ended without a word")
    first = min(found, key=lambda note: (not note["killed"], note["at"]))
    if first["kind"] is not None:
        kind: type[LaminaError] = getattr(errors, first["kind"])
        return kind(first["message"])
    where = ""
    if trace := first["extraInfo"]["py_callstack"]:
        # Through the root's handlers it goes into the log file, and not to the console.
        logging.getLogger("rank").warning("rank %d\n%s", first["rank"], trace)
        where = f"; the traceback is in {folder / 'train.log'}"
    who = f"rank {first['rank']}: " if processes > 1 else ""
    if first["killed"] and processes == 1:
        who = "the run's process was "
    return TrainingError(f"{who}{first['message'].splitlines()[0]}{where}")
