"""A lock on a folder, so that two processes never write into the same one."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lamina.errors import OutputError
from lamina.runtime.files import disk_errors, refuse_unwritable, remove_links, remove_litter

LOCK_FILE = ".lock"
"""The locked file; its two lines are the owner's process id and host."""


@contextmanager
def locked(folder: Path, key: str) -> Iterator[None]:
    """Lock a folder for this process during the body; create it if needed, or clean it up.

    The operating system releases the lock however the process ends. `key` is the config key that
    sets the folder. An OutputError if another process holds the lock.
    """
    from filelock import FileLock, Timeout

    refuse_unwritable(folder, key)
    path = folder / LOCK_FILE
    with disk_errors(folder, key):
        folder.mkdir(parents=True, exist_ok=True)
        remove_links(folder, f"{LOCK_FILE}*")
        lock = FileLock(path, blocking=False)
        try:
            lock.acquire()
        except Timeout as error:
            raise OutputError(
                f"{folder} belongs to {_owner(path)}, which is still running: wait for it, or use "
                f"another {key}"
            ) from error
    try:
        own = f"{os.getpid()}\n{socket.gethostname()}\n"
        with disk_errors(folder, key):
            if not path.read_bytes().startswith(own.encode()):  # filelock's, where flock is missing
                path.write_text(own)
            remove_litter(folder)
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def _owner(path: Path) -> str:
    try:
        process, host, *_ = path.read_text().splitlines()
    except (OSError, ValueError):
        return "another process"
    return f"process {process} on {host}"
