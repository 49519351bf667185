"""What is said where a file cannot be written: the disk is full, or not ours to write on."""

import errno
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lamina.errors import OutputError
from lamina.runtime.sizes import free_disk_bytes
from lamina.units import sized

FULL = ("No space left on device", "Disk quota exceeded")
REFUSED = ("Read-only file system", "Permission denied", "Not a directory")


def told(path: Path, reason: str, key: str | None = None, needed: int | None = None) -> str:
    """Return what is said about something that cannot be written.

    Args:
        path: Of the file or folder.
        reason: What the operating system said.
        key: Of the config, that decides where it is; None where none does.
        needed: Bytes that were to be written; None where nobody knows.
    """
    line = f"{key}: {path}" if key else str(path)
    line += f" cannot be written: {reason}"
    if reason in FULL:
        room = f"{sized(free_disk_bytes(path))} are free"
        room += f", {sized(needed)} are needed" if needed is not None else ""
        intact = "earlier checkpoints are intact: " if key == "output_dir" else ""
        return f"{line}; {room}; {intact}make room and start the same command again in that folder"
    return f"{line}; give another {key}" if key and reason in REFUSED else line


def cause(error: BaseException) -> str | None:
    """Return what the operating system said if an error is one of writing; None for any other."""
    # safetensors and PyArrow wrap it, and torch.save 2.13 swallows it.
    said = re.search("|".join((*FULL, *REFUSED)), str(error))
    if said is not None:
        return said[0]
    swallowed = re.search(r"unexpected pos \d+ vs|PytorchStreamWriter failed", str(error))
    return FULL[0] if swallowed else None


@contextmanager
def disk_errors(
    path: Path, key: str | None = None, needed: Callable[[], int] | None = None
) -> Iterator[None]:
    """Turn a failed write into an error that says where, why, and what to do.

    Args:
        path: What the body writes.
        key: Of the config, that decides where it is.
        needed: Returns the bytes that it takes; called after a failure only.

    Raises:
        OutputError: The body could not write.
    """
    from safetensors import SafetensorError

    try:
        yield
    except OutputError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        if (said := cause(error)) is None:
            raise
        raise OutputError(told(path, said, key, needed() if needed else None)) from error


@contextmanager
def full_disks(folder: Path) -> Iterator[None]:
    """Turn what only a write can meet, wherever it happens, into an error for people.

    Args:
        folder: Named where the error does not say which file it was.

    Raises:
        OutputError: A disk is full, or mounted read-only.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        path = Path(error.filename) if isinstance(error.filename, str) else folder
        raise OutputError(told(path, error.strerror or "")) from error


def refuse_unwritable(folder: Path, key: str) -> None:
    """Write into a folder before anything slow relies on it; it is made if it is missing.

    Permissions alone do not tell: root passes them by, and a disk may be mounted read-only.

    Args:
        folder: To be written into.
        key: Of the config, that decides where it is.

    Raises:
        OutputError: It cannot be written.
    """
    with disk_errors(folder, key):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise OutputError(f"{key}: {folder} is no folder: give another {key}") from error
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
            file.flush()
