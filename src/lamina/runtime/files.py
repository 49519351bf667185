"""Atomic writes of files and folders, and the errors of disks that refuse them."""

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

FULL = ("No space left on device", "Disk quota exceeded")
READ_ONLY = "Read-only file system"
REFUSED = (READ_ONLY, "Permission denied", "Not a directory")


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
    shutil.rmtree(partial.parent, ignore_errors=True)
    try:
        partial.parent.mkdir(parents=True)
        yield partial
        if flush:
            _flush(partial)
        if path.is_dir() and partial.is_dir():  # a rename replaces files and empty folders only
            path.rename(partial.parent / "before")
        partial.replace(path)
    finally:
        shutil.rmtree(partial.parent, ignore_errors=True)


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
    write_text(path, json.dumps(_finite(content), indent=2) + "\n")


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


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def unwritable(path: Path, reason: str, key: str | None = None, needed: int | None = None) -> str:
    """Return the message for a file or folder that cannot be written.

    `reason` is the operating system's, `key` the config key that sets the path; the write takes
    `needed` bytes.
    """
    line = f"{key}: {path}" if key else str(path)
    line += f" cannot be written: {reason}"
    if reason in FULL:
        room = f"{format_bytes(free_disk_bytes(path))} are free"
        room += f", {format_bytes(needed)} are needed" if needed is not None else ""
        intact = "earlier checkpoints are intact: " if key == "output_dir" else ""
        return f"{line}; {room}; {intact}make room and start the same command again in that folder"
    return f"{line}; use another {key}" if key else line


def write_failure(error: BaseException) -> str | None:
    """Return the operating system's reason for a failed write; None for any other error."""
    # safetensors and PyArrow wrap it, and torch.save 2.13 swallows it.
    reason = re.search("|".join((*FULL, *REFUSED)), str(error))
    if reason is not None:
        return reason[0]
    swallowed = re.search(r"unexpected pos \d+ vs|PytorchStreamWriter failed", str(error))
    return FULL[0] if swallowed else None


@contextmanager
def disk_errors(
    path: Path, key: str | None = None, needed: Callable[[], int] | None = None
) -> Iterator[None]:
    """Turn a failed write in the body into an OutputError that says where, why and what to do.

    Without a `key`, the config key that sets the path, only full and read-only disks count, and the
    file that the error names is reported. `needed` returns the bytes the write takes, and is called
    only after a failure.
    """
    from safetensors import SafetensorError

    try:
        yield
    except LaminaError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = write_failure(error)
        if reason is None or (key is None and reason not in (*FULL, READ_ONLY)):
            raise
        named = getattr(error, "filename", None)
        place = Path(named) if key is None and isinstance(named, str) else path
        raise OutputError(unwritable(place, reason, key, needed() if needed else None)) from error


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
