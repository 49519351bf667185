"""What jobs share: figures computed once, and found again by what they depend on."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from lamina.runtime.files import refuse_unwritable, write_json


@dataclass
class Entry:
    """One figure's place."""

    folder: Path
    """Where it is, and where something unfinished may lie beside it."""

    content: dict[str, Any] | None
    """The figures; None where they have to be computed yet."""


@contextmanager
def cached(folder: Path, filename: str) -> Iterator[Entry]:
    """Give a file's content, and write what the body makes of it; one process at a time.

    Args:
        folder: See `folder_of`.
        filename: Of a JSON file.

    Raises:
        OutputError: It cannot be written.
    """
    from filelock import FileLock

    refuse_unwritable(folder, "LAMINA_CACHE")
    path = folder / filename
    with FileLock(folder / ".lock"):
        before = json.loads(path.read_text()) if path.is_file() else None
        entry = Entry(folder, before)
        yield entry
        if entry.content is not before:
            write_json(path, entry.content or {})


def folder_of(kind: str, parts: list[str]) -> Path:
    """Return the cache folder of figures that depend on some texts, and on nothing else.

    Args:
        kind: Of figures.
        parts: What they depend on.
    """
    name = sha256("\n".join(parts).encode()).hexdigest()[:24]
    return cache_folder() / kind / name


def cache_folder() -> Path:
    """Return where figures are kept: LAMINA_CACHE, or lamina/ in the user's cache folder."""
    if given := os.environ.get("LAMINA_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "lamina"


def code_version(package: str, modules: tuple[str, ...]) -> str:
    """Return a hash of the modules that figures depend on.

    Args:
        package: Of ours, such as depth.
        modules: Their names.
    """
    folder = Path(__file__).resolve().parents[1] / package
    digest = sha256()
    for name in modules:
        digest.update((folder / f"{name}.py").read_bytes())
    return digest.hexdigest()[:16]
