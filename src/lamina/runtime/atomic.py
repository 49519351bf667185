"""Files and folders that are complete or absent: a reader never sees half of one."""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lamina.errors import OutputError
from lamina.runtime.disk import told

PARTIAL = ".*.partial"
"""Pattern of what a save that was cut off leaves beside the folder that it would have written."""


def aside(folder: Path) -> Path:
    """Return where a folder is while it is written, in a folder of its own."""
    return folder.with_name(f".{folder.name}.partial") / folder.name


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give a temporary folder; once it is whole, on the disk too, it takes the place of `folder`.

    Where the body fails nothing is left of it: on a full disk that makes room to say so.

    Args:
        folder: The one before stays until then.
    """
    partial = aside(folder)
    shutil.rmtree(partial.parent, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        _flush(partial)
        if folder.exists():
            folder.rename(partial.parent / "before")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial.parent, ignore_errors=True)


def copied(source: Path, target: Path) -> None:
    """Bring a folder to another place, with links where the disk is the same."""
    with replacing(target) as partial:
        shutil.copytree(source, partial, copy_function=_linked, dirs_exist_ok=True)


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)


def _flush(folder: Path) -> None:
    """Wait for the disk: a machine that loses power keeps a new name before its content."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one JSON object a line.

    Raises:
        OutputError: The file cannot be written.
    """
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON as a whole; numbers that are not finite become null.

    Raises:
        OutputError: The file cannot be written.
    """
    write_text(path, json.dumps(_finite(content), indent=2) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write under a temporary name, then rename: readers see the old or the new file.

    Raises:
        OutputError: The file cannot be written.
    """
    write_bytes(path, content.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write as `write_text` does.

    Raises:
        OutputError: The file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        # It fails as well where the folder is a file; the first reason is the one to tell.
        with suppress(OSError):
            temporary.unlink()
        raise OutputError(told(path, error.strerror or str(error))) from error


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON does not have, by null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
