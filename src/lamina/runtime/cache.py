"""Figures that jobs share: computed once, then found by a hash of what they depend on."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from lamina.runtime.console import stage
from lamina.runtime.files import refuse_unwritable, remove_links, remove_litter, write_bytes


@dataclass
class Entry:
    """The cached figures of one computation."""

    folder: Path
    """Their folder, which may also hold unfinished work."""
    content: dict[str, Any] | None
    """The figures; None until they are computed."""


@contextmanager
def cached(folder: Path, filename: str, key: str = "LAMINA_CACHE") -> Iterator[Entry]:
    """Yield a file's content and save what the body sets; one process at a time, others wait.

    Its first line is the checksum of the second, which is JSON: a damaged file is made again. `key`
    sets the folder.
    """
    from filelock import FileLock, Timeout

    refuse_unwritable(folder, key)
    folder.mkdir(parents=True, exist_ok=True)
    path, lock = folder / filename, FileLock(folder / ".lock")
    remove_links(folder, ".lock*")
    try:
        owned = lock.acquire(blocking=False)
    except Timeout:
        with stage(f"waiting for another process, which computes {filename.partition('.')[0]}"):
            owned = lock.acquire()
    with owned:
        remove_litter(folder)
        before = read_entry(path)
        entry = Entry(folder, before)
        yield entry
        if entry.content is not before:
            text = json.dumps(entry.content).encode()
            write_bytes(path, _checksum(text) + b"\n" + text)


def read_entry(path: Path) -> dict[str, Any] | None:
    """Return what `cached` saved, without a lock or a write; None if it is missing or damaged."""
    check, _, text = path.read_bytes().partition(b"\n") if path.is_file() else (b"",) * 3
    return json.loads(text) if check == _checksum(text) else None


def _checksum(text: bytes) -> bytes:
    return sha256(text).hexdigest().encode()


def digest(path: Path) -> str:
    """Return the SHA-256 of a file beside an entry; empty without one."""
    return _checksum(path.read_bytes()).decode() if path.is_file() else ""


def folder_of(kind: str, parts: list[str]) -> Path:
    """Return the cache folder of figures of one kind, such as `scans`.

    `parts` are everything the figures depend on, such as the PROTOCOL number of the code that
    computes them; a change to the code that changes figures increments it.
    """
    name = sha256("\n".join(parts).encode()).hexdigest()[:24]
    return cache_folder() / kind / name


def cache_folder() -> Path:
    """Return the cache of all figures: LAMINA_CACHE, or lamina/ in the user's cache folder."""
    if given := os.environ.get("LAMINA_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "lamina"
