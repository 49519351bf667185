"""Atomic writes of files and folders, and the errors of disks that refuse them."""

import errno
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lamina.errors import LaminaError, OutputError
from lamina.runtime.sizes import existing, free_disk_bytes
from lamina.units import format_bytes

PARTIAL = ".*.partial"
"""Glob of the temporary folders that a killed process leaves behind."""

FULL = (errno.ENOSPC, errno.EDQUOT)
ONLY_WRITES = (*FULL, errno.EROFS, errno.EFBIG)
"""Errors that no read has."""
UNNAMED = (*ONLY_WRITES, errno.EIO, errno.ESTALE)
"""Errors of open files, too, which do not name them."""
REFUSALS = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
KNOWN = (*UNNAMED, *REFUSALS)
"""Errors that are the file system's, not a program's."""

LIBRARIES = ("pyarrow", "safetensors")
"""Have errors of their own, with the system's reason in their text."""


def partial_path(path: Path, writer: str = "") -> Path:
    """Return where `replacing` writes: the same name in a temporary folder of its own."""
    return path.with_name(f".{path.name}{writer}.partial") / path.name


@contextmanager
def replacing(path: Path, writer: str = "", *, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path; the file or folder that the body creates there replaces `path`.

    If the body fails, `path` is unchanged and what the body wrote is removed, which makes room on a
    full disk. A `writer` distinguishes processes that may write the same path at once; without it,
    the next start removes what a killed process left. `flush` waits for the disk first, so that a
    power cut never leaves a new name with old or missing content; what the same command can write
    again does not need it.
    """
    partial = partial_path(path, writer)
    _remove(partial.parent)
    try:
        partial.parent.mkdir(parents=True)
        yield partial
        if flush:
            _flush(partial)
        # A rename replaces files, links and empty folders only; a folder replaces no link, either.
        if partial.is_dir() and (path.is_dir() or path.is_symlink()):
            path.rename(partial.parent / "before")
        partial.replace(path)
    finally:
        shutil.rmtree(partial.parent, ignore_errors=True)


def remove_litter(folder: Path) -> None:
    """Remove what killed writes left in a folder that no other process writes to."""
    for path in folder.glob(PARTIAL):
        _remove(path)


def remove_links(folder: Path, *patterns: str) -> None:
    """Remove links where a library would write through them; their targets are left alone."""
    with disk_errors(folder):
        for pattern in patterns:
            for path in filter(Path.is_symlink, [*folder.glob(pattern)]):
                path.unlink()


def discard(path: Path) -> None:
    """Remove a folder at once: a kill leaves all of it or litter."""
    litter = partial_path(path).parent
    _remove(litter)
    path.rename(litter)
    _remove(litter)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _flush(path: Path) -> None:
    for each in (*path.rglob("*"), path):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder, with hard links if both are on one disk."""
    with replacing(target) as partial:
        shutil.copytree(source, partial, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without hard links
        shutil.copy2(source, target)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one JSON object per line."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON; NaN and infinities, which JSON lacks, become null."""
    write_text(path, json.dumps(finite(content), indent=2) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write text as UTF-8."""
    write_bytes(path, content.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file and the folders above it; readers see the old or the new content."""
    try:
        with replacing(path, f".{os.getpid()}") as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise OutputError(unwritable(path, error.strerror or str(error))) from error


def finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON lacks, by None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def unwritable(path: Path, reason: str, key: str | None = None, needed: int | None = None) -> str:
    """Return the message for a file or folder that cannot be written.

    `reason` is the operating system's, `key` the config key that sets the path; the write takes
    `needed` bytes.
    """
    line = f"{key}: {path}" if key else str(path)
    line += f" cannot be written: {reason}"
    if reason in map(os.strerror, FULL):
        room = f"{format_bytes(free_disk_bytes(path))} are free"
        room += f", {format_bytes(needed)} are needed" if needed is not None else ""
        intact = "earlier checkpoints are intact: " if key == "output_dir" else ""
        return f"{line}; {room}; {intact}make room and start the same command again in that folder"
    return f"{line}; use another {key}" if key else line


def disk_failure(error: BaseException) -> OSError | None:
    """Return the file system's error behind a library's; None for any other error."""
    if isinstance(error, OSError) and error.errno in KNOWN:
        return error
    # safetensors and PyArrow wrap it, and torch.save 2.13 swallows it.
    text = str(error)
    if re.search(r"unexpected pos \d+ vs|PytorchStreamWriter failed", text):
        return OSError(errno.ENOSPC, text)
    return next((OSError(code, text) for code in KNOWN if os.strerror(code) in text), None)


@contextmanager
def disk_errors(
    path: Path, key: str | None = None, needed: Callable[[], int] | None = None
) -> Iterator[None]:
    """Turn a file system's error in the body into an OutputError: which file, why, what to do.

    `path` is where the body writes, and `key` the config key that sets it. `needed` returns the
    bytes the write takes, and is called only after a failure.
    """
    try:
        yield
    except LaminaError:
        raise
    except Exception as error:
        library = type(error).__module__.partition(".")[0].removesuffix("_rust")
        # Logging wraps what its handlers raise in a ValueError.
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        is_known = isinstance(cause, OSError | RuntimeError) or library in LIBRARIES
        failure = disk_failure(cause) if is_known else None
        name = getattr(failure, "filename", None)
        if failure is None or (name is key is None and failure.errno not in UNNAMED):
            raise
        code = failure.errno or 0
        reason = os.strerror(code)
        if isinstance(name, str):
            if code not in ONLY_WRITES and _is_unreadable(Path(name)):
                raise OutputError(f"{name} cannot be read: {reason}") from error
            if key is None or code not in FULL or path.absolute() not in Path(name).parents:
                path, key = Path(name), None
        raise OutputError(unwritable(path, reason, key, needed() if needed else None)) from error


def _is_unreadable(path: Path) -> bool:
    """Whether a failed path cannot be read either; the error does not say what was tried."""
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        return not isinstance(error, FileNotFoundError | IsADirectoryError)
    return False


def refuse_unwritable(folder: Path, key: str) -> None:
    """Try to write into a folder, or the one it would be created in, before slow work.

    Permissions do not tell: root ignores them, and a disk may be mounted read-only. `key` is the
    config key that sets the folder.
    """
    place = folder.expanduser()
    try:
        with tempfile.TemporaryFile(dir=existing(place)) as file:
            file.write(b"\0")
            file.flush()
    except OSError as error:
        raise OutputError(unwritable(place, error.strerror or str(error), key)) from error
