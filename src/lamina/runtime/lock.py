"""A lock on a folder, so that two processes never write into the same one."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lamina.errors import OutputError
from lamina.runtime.files import refuse_unwritable

LOCK_FILE, OWNER_FILE = ".lock", ".owner.json"


@contextmanager
def locked(folder: Path, key: str) -> Iterator[None]:
    """Lock a folder for this process during the body; create it if needed.

    The operating system releases the lock however the process ends. `key` is the config key that
    sets the folder. An OutputError if another process holds the lock.
    """
    from filelock import FileLock, Timeout

    refuse_unwritable(folder, key)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise OutputError(
            f"{folder} belongs to {_owner(folder)}, which is still running: wait for it, or use "
            f"another {key}"
        ) from error
    owner = {"pid": os.getpid(), "host": socket.gethostname()}
    (folder / OWNER_FILE).write_text(json.dumps(owner) + "\n")
    try:
        yield
    finally:
        (folder / OWNER_FILE).unlink(missing_ok=True)
        (folder / LOCK_FILE).unlink(missing_ok=True)
        lock.release()


def _owner(folder: Path) -> str:
    try:
        owner = json.loads((folder / OWNER_FILE).read_text())
    except (OSError, ValueError):
        return "another process"
    return f"process {owner['pid']} on {owner['host']}"
