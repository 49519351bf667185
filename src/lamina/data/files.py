"""Files of rows: CSV, JSON, JSON lines and Parquet, one file or a folder of them.

`lamina.data.formats` parses them, and the `datasets` library keeps the rows.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.data.cache import kept_rows
from lamina.data.formats import READERS
from lamina.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

Stamp = tuple[str, str, int, int]
"""Name of a file as given, its whole path, its size and when it was changed (nanoseconds)."""


def read_files(key: str, name: str, kind: str) -> "tuple[Dataset, tuple[str, ...]]":
    """Read a file, or the files of one kind in a folder, in the order of their names.

    Args:
        key: Config key that named it, for an error.
        name: Path of the file or folder.
        kind: csv, json, jsonl or parquet; in a folder also what the files' names end in.

    Returns:
        A data set with the columns file (0-based), row (1-based), content and problem, and the
        files' names. What is no row has empty content and a problem.

    Raises:
        DataError: There is no such file, or one cannot be read as a whole.
    """
    from datasets import Features, Json, Value

    paths = paths_of(key, name, kind)
    stamps = tuple(map(_stamp, paths))
    columns = {"file": Value("int32"), "row": Value("int64"), "content": Json()}
    features = Features({**columns, "problem": Value("string")})
    rows = kept_rows(_rows, features, ("files", "formats"), key=key, kind=kind, stamps=stamps)
    return rows, tuple(map(str, paths))


def paths_of(key: str, name: str, kind: str) -> list[Path]:
    """Return the files that a path stands for; none of them is read.

    Args:
        key: Config key that named it, for an error.
        name: Path of the file or folder.
        kind: In a folder, what the files' names end in.

    Raises:
        DataError: There is none, or one is empty.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        paths = sorted(entry for entry in path.iterdir() if entry.suffix == f".{kind}")
        if not paths:
            raise DataError(f"{key}={name}: no file in this folder ends in .{kind}")
    elif path.is_file():
        paths = [path]
    else:
        raise DataError(f"{key}={name}: no such file or folder")
    for entry in paths:
        if entry.stat().st_size == 0:
            raise DataError(f"{key}={entry}: the file is empty")
    return paths


def _stamp(path: Path) -> Stamp:
    found = path.stat()
    return str(path), str(path.resolve()), found.st_size, found.st_ctime_ns


def _rows(key: str, kind: str, stamps: tuple[Stamp, ...], code: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of all files; by the arguments the library finds rows that it kept."""
    for number, (name, *_) in enumerate(stamps):
        row = 0
        for row, content, problem in READERS[kind](Path(name), f"{key}={name}"):
            yield {"file": number, "row": row, "content": content, "problem": problem}
        if row == 0:
            raise DataError(f"{key}={name}: no rows")
