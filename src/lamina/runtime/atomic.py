"""Folders that are whole or not there: checkpoints and final/."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
