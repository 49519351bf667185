"""Files of rows: CSV, JSON and JSON lines, compressed or not, and Parquet, alone or in a folder.

Each reader yields every row with its number and, for a broken one, the problem. The libraries'
readers lose one or the other: `datasets` and `pyarrow.json` guess types (a CSV answer of 72 becomes
a number, text like a date a date) and stop at the first broken line. `pyarrow.csv` 26 reads all
that follows an unclosed quote as one row and `"a"b` as `ab`, stops at a cell that is not UTF-8, and
refuses a row longer than its block.
"""

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.data.cache import cached_rows
from lamina.data.chat.messages import without_nulls
from lamina.data.compression import ENDINGS, SUFFIXES, compression, decompressed
from lamina.data.forms import FORMS
from lamina.errors import DataError, either, reason_of

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from pyarrow import RecordBatch

SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a pair, which is not UTF-8; also what a byte that is not UTF-8 is read as."""

LONGEST_ROW = 10_000_000
"""Characters of the longest row; a tokenizer takes minutes for more."""

Stamp = tuple[str, str, int, int]
"""A file's path as given, its absolute path, size in bytes and change time in nanoseconds."""

Read = tuple[int, dict[str, Any], str | None]
"""A row's 1-based number in its file, its content, and the problem that makes it unusable.

JSON lines are numbered as in an editor. In CSV neither the header nor a blank line has a number.
"""


def read_files(
    key: str, name: str, kind: str, columns: Mapping[str, str]
) -> "tuple[Dataset, tuple[str, ...]]":
    """Read a file, or a folder's files with the suffix `kind` in the order of their names.

    `key` is the config key that gives the path `name`; `columns` has the files' names of columns.
    Return a data set with the columns file (0-based), row (1-based), content (a JSON object; empty
    if the row is broken) and problem, and the files' names. Raises DataError if there is no such
    file, or one cannot be read as a whole.
    """
    paths = find_files(key, name, kind)
    found = ((path, path.stat()) for path in paths)
    stamps = tuple((str(p), str(p.resolve()), of.st_size, of.st_ctime_ns) for p, of in found)
    rows = cached_rows(_rows, row_features(), key=key, kind=kind, stamps=stamps, columns=columns)
    return rows, tuple(map(str, paths))


def row_features() -> "Features":
    """Return the columns of `read_files`."""
    from datasets import Features, Value

    # As text: the library's own Json loses digits of numbers and fails beyond 64 bits.
    content = {"file": Value("int32"), "row": Value("int64"), "content": Value("string")}
    return Features({**content, "problem": Value("string")})


def find_files(key: str, name: str, kind: str) -> list[Path]:
    """Return a path's files, unread; raises DataError if there are none or one is empty."""
    path = Path(name).expanduser()
    if name and path.is_dir():
        paths = _in_folder(path, kind)
        if not paths:
            others = either([each for each in READERS if each != kind])
            compressed = f" ({ENDINGS} may follow)" * (kind != "parquet")
            raise DataError(
                f"{key}={name}: no file in this folder ends in .{kind}{compressed}: use another "
                f"folder, or choose data={others} for files of that format"
            )
        names = dict[str, Path]()
        for each in paths:
            if (other := names.setdefault(each.name.rpartition(f".{kind}")[0], each)) != each:
                raise DataError(
                    f"{key}={name}: {other.name} and {each.name} would be read as the same rows "
                    "twice: remove one of them, or rename it if its rows are others"
                )
    elif path.is_file():
        paths = [path]
    else:
        raise DataError(f"{key}={name}: no such file or folder")
    for entry in paths:
        if entry.stat().st_size == 0:
            raise DataError(f"{key}={entry}: the file is empty")
    return paths


def _in_folder(folder: Path, kind: str) -> list[Path]:
    """Return a folder's files of one kind, without the ._NAME that macOS adds on other disks."""
    endings = tuple(f".{kind}{suffix}" for suffix in SUFFIXES)
    files = (path for path in folder.iterdir() if path.name.endswith(endings) and path.is_file())
    return sorted(path for path in files if not path.name.startswith("."))


def _rows(
    key: str, kind: str, stamps: tuple[Stamp, ...], columns: Mapping[str, str], protocol: str
) -> Iterator[dict[str, Any]]:
    """Yield the rows of all files; the arguments are the cache's key."""
    for number, (name, *_) in enumerate(stamps):
        row, path, named = 0, Path(name), f"{key}={name}"
        read = _json(path, named, columns) if kind == "json" else READERS[kind](path, named)
        try:
            for row, content, problem in read:
                text = json.dumps(content, ensure_ascii=False)
                if len(text) > LONGEST_ROW:
                    problem = f"{len(text):,} characters; expected at most {LONGEST_ROW:,}"
                    text = "{}"
                yield {"file": number, "row": row, "content": text, "problem": problem}
        except OSError as error:
            raise DataError(f"{named} cannot be read: {error.strerror or error}") from error
        if row == 0:
            raise DataError(f"{named}: no rows")


def _jsonl(path: Path, named: str) -> Iterator[Read]:
    with decompressed(path, named) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, *_object(line, number)


def _object(line: bytes, number: int) -> tuple[dict[str, Any], str | None]:
    is_list = number == 1 and line.lstrip().startswith(b"[")
    hint = "; for a list of objects use data=json" if is_list else ""
    try:
        content = _parse_json(_decode(line, is_start=number == 1).strip())
    except ValueError as error:
        return {}, f"{error}; expected one JSON object per line{hint}"
    if not isinstance(content, dict):
        return {}, f"found {type(content).__name__}; expected a JSON object{hint}"
    return content, None


def _json(path: Path, named: str, columns: Mapping[str, str]) -> Iterator[Read]:
    with decompressed(path, named) as file:
        text = file.read()
    try:
        content = _parse_json(_decode(text, is_start=True))
    except ValueError as error:
        raise DataError(
            f"{named}: {error}; expected a list of objects; for one object per line use data=jsonl"
        ) from error
    if isinstance(content, dict):
        content = _rows_of_object(content, columns)
    if not isinstance(content, list):
        raise DataError(f"{named}: found {type(content).__name__}; expected a list of objects")
    for number, row in enumerate(content, 1):
        if isinstance(row, dict):
            yield number, row, None
        else:
            yield number, {}, f"found {type(row).__name__}; expected a JSON object"


def _rows_of_object(content: dict[str, Any], columns: Mapping[str, str]) -> Any:
    """Return the list of rows below a key, or the rows of a table as pandas and datasets write it.

    Anything else is returned as it is. `columns` has the table's names of the forms' columns.
    """
    values = list(content.values())
    if values and all(isinstance(value, dict) for value in values):
        return _rows_of_mappings(content, columns)
    lists = [value for value in values if isinstance(value, list)]
    if len(lists) == 1 and (len(values) > 1 or not lists[0] or _has_object(lists[0])):
        return lists[0]
    return _rows_of_lists(content)


def _rows_of_mappings(content: dict[str, Any], columns: Mapping[str, str]) -> list[Any]:
    """Return the rows of pandas' columns of cells by row label, or of its rows by label."""
    values = list(content.values())
    labels = values[0].keys()
    numbered = [all(map(str.isdecimal, keys)) for keys in (content, labels)]
    forms = [{columns.get(column, column) for column in form} for form in FORMS]
    has_form = [any(keys >= form for form in forms) for keys in (content.keys(), labels)]
    is_by_column = numbered == [False, True] or has_form == [True, False]
    if is_by_column and all(value.keys() == labels for value in values):
        return [{name: cells[label] for name, cells in content.items()} for label in labels]
    return values


def _rows_of_lists(content: dict[str, Any]) -> Any:
    """Return the rows of pandas' orient=split (columns, and data), or of datasets' to_dict."""
    columns, data = content.get("columns"), content.get("data")
    if isinstance(columns, list) and isinstance(data, list):
        if all(isinstance(cells, list) and len(cells) == len(columns) for cells in data):
            return [dict(zip(map(str, columns), cells, strict=True)) for cells in data]
        return content
    lists = list(content.values())
    if not all(isinstance(cells, list) and not _has_object(cells) for cells in lists):
        return content
    if len({*map(len, lists)}) != 1:
        return content
    return [dict(zip(content, cells, strict=True)) for cells in zip(*lists, strict=True)]


def _has_object(cells: list[Any]) -> bool:
    return any(isinstance(cell, dict) for cell in cells)


def _csv(path: Path, named: str) -> Iterator[Read]:
    csv.field_size_limit(sys.maxsize)
    with (
        decompressed(path, named) as file,
        TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="") as lines,
    ):
        rows = csv.reader(lines, strict=True)
        try:
            header = next(filter(None, rows), [])
        except csv.Error as error:
            raise DataError(
                f"{named}: the header is not CSV ({error}); expected column names separated by "
                "commas"
            ) from error
        if len(set(header)) < len(header) or any(map(SURROGATE.search, header)):
            raise DataError(
                f"{named}: found the header {', '.join(map(ascii, header))}; expected distinct "
                "column names in UTF-8"
            )
        number = 0
        while True:
            try:
                cells = next(rows, None)
            except csv.Error as error:
                number += 1
                if "end of data" in str(error):
                    raise DataError(
                        f"{named}, row {number}: a quote is never closed, so the rest of the file "
                        "would be one row; close it, or double a quote that is text"
                    ) from error
                yield number, {}, f"not CSV ({error}); expected cells separated by commas"
                continue
            if cells is None:
                return
            if cells:
                number += 1
                yield number, *_cells(cells, header)


def _cells(cells: list[str], header: list[str]) -> tuple[dict[str, Any], str | None]:
    if len(cells) != len(header):
        return {}, f"found {len(cells)} cells; expected {len(header)}, one per column"
    for name, cell in zip(header, cells, strict=True):
        if SURROGATE.search(cell):
            return {}, f"column {name!r} is not UTF-8; expected UTF-8"
    return dict(zip(header, cells, strict=True)), None


def _parquet(path: Path, named: str) -> Iterator[Read]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    if kind := compression(path):
        raise DataError(f"{named}: a {kind} file: decompress it; Parquet compresses its columns")
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for row, problem in _batch_rows(batch):
                    number += 1
                    yield number, row, problem
    except (ArrowException, OSError) as error:
        if getattr(error, "errno", None):
            raise
        reason = reason_of(error).rstrip(".")
        raise DataError(f"{named}: damaged, or not a Parquet file ({reason})") from error


def _batch_rows(batch: "RecordBatch") -> Iterator[tuple[dict[str, Any], str | None]]:
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError) as error:  # not UTF-8, or a time beyond Python's
        if batch.num_rows == 1:
            yield {}, f"a value cannot be read ({reason_of(error)})"
            return
        for index in range(batch.num_rows):
            yield from _batch_rows(batch.slice(index, 1))
        return
    for row in rows:
        row = {name: without_nulls(cell) for name, cell in row.items()}
        yield json.loads(json.dumps(row, default=_as_object)), None


def _as_object(value: Any) -> dict[str, str]:
    """Keep a value that JSON lacks (a date, bytes) from passing for text."""
    return {type(value).__name__: str(value)}


READERS: dict[str, Callable[..., Iterator[Read]]] = {
    "csv": _csv,
    "json": _json,
    "jsonl": _jsonl,
    "parquet": _parquet,
}
"""Kinds of file; a reader takes the path and `KEY=PATH` for errors, that of JSON `columns`, too."""


def _decode(content: bytes, *, is_start: bool) -> str:
    try:
        return content.decode("utf-8-sig" if is_start else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not UTF-8 (byte {error.start + 1} is 0x{content[error.start]:02x})"
        ) from error


def _parse_json(text: str) -> Any:
    """Parse JSON; refuse NaN and lone surrogates, too, which Python's parser accepts."""
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
        if "\\ud" in text.lower() and SURROGATE.search(json.dumps(content, ensure_ascii=False)):
            raise ValueError("not UTF-8 (half of a surrogate pair)")
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if error.lineno > 1 else ""
        raise ValueError(f"not JSON ({error.msg}: {line}column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("not JSON (nested too deeply)") from error
    return content


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"not JSON ({constant})")
