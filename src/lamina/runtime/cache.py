"""Figures that jobs share: computed once, then found by a hash of what they depend on."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from lamina.runtime.files import refuse_unwritable, remove_links, remove_litter, write_json

CHECK = "sha256"
"""Field of a cached file with the checksum of the others."""


@dataclass
class Entry:
    """The cached figures of one computation."""

    folder: Path
    """Their folder, which may also hold unfinished work."""
    content: dict[str, Any] | None
    """The figures; None until they are computed."""


@contextmanager
def cached(folder: Path, filename: str) -> Iterator[Entry]:
    """Yield a JSON file's content and save what the body sets; one process at a time.

    A damaged file is computed again.
    """
    from filelock import FileLock

    refuse_unwritable(folder, "LAMINA_CACHE")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / filename
    remove_links(folder, ".lock*")
    with FileLock(folder / ".lock"):
        remove_litter(folder)
        try:
            before = json.loads(path.read_text())
            is_whole = before.pop(CHECK) == _check(before)
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            is_whole = False
        entry = Entry(folder, before if is_whole else None)
        yield entry
        if entry.content is not None and not (is_whole and entry.content is before):
            write_json(path, {**entry.content, CHECK: _check(entry.content)})


def _check(content: dict[str, Any]) -> str:
    text = json.dumps(content)
    return sha256(re.sub("NaN|-?Infinity", "null", text).encode()).hexdigest()  # as it is written


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
