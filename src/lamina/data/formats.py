"""How files of rows are parsed: CSV, JSON, JSON lines and Parquet.

Every reader yields what is a row and what should be one. The `datasets` library's own readers guess
types (a CSV answer of 72 becomes a number, a text that looks like a date a date), stop at the first
line that is broken, and do not say which one it was.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lamina.errors import DataError

Read = tuple[int, dict[str, Any], str | None]
"""A row's 1-based number in its file, its content, and what makes it unusable.

Blank lines are no rows, but lines of JSON are numbered as an editor does. A CSV file's header has
no number.
"""


def _jsonl(path: Path, named: str) -> Iterator[Read]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                content, problem = _object(line, number)
                yield number, content, problem


def _object(line: bytes, number: int) -> tuple[dict[str, Any], str | None]:
    is_list = number == 1 and line.lstrip().startswith(b"[")
    hint = "; for a list of objects choose data=json" if is_list else ""
    try:
        content = _loads(_decoded(line, number == 1).strip())
    except ValueError as error:
        return {}, f"{error}; expected one JSON object a line{hint}"
    if not isinstance(content, dict):
        return {}, f"found {type(content).__name__}; expected a JSON object{hint}"
    return content, None


def _json(path: Path, named: str) -> Iterator[Read]:
    try:
        content = _loads(_decoded(path.read_bytes(), True))
    except ValueError as error:
        raise DataError(
            f"{named}: {error}; expected a list of objects; for one object a line choose data=jsonl"
        ) from error
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        if len(lists) == 1:
            content = lists[0]
        elif content and all(isinstance(value, dict) for value in content.values()):
            content = list(content.values())
    if not isinstance(content, list):
        raise DataError(f"{named}: found {type(content).__name__}; expected a list of objects")
    for number, row in enumerate(content, 1):
        if isinstance(row, dict):
            yield number, row, None
        else:
            yield number, {}, f"found {type(row).__name__}; expected a JSON object"


def _csv(path: Path, named: str) -> Iterator[Read]:
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        rows = csv.reader(lines, strict=True)
        header = next(filter(None, rows), [])
        if len(set(header)) < len(header) or not all(map(_is_utf8, header)):
            raise DataError(
                f"{named}: found the header {', '.join(map(ascii, header))}; expected column "
                "names that differ, in UTF-8"
            )
        number = 0
        while True:
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                number += 1
                if "end of data" in str(error):
                    raise DataError(
                        f"{named}, row {number}: a quote is opened and never closed; the rest of "
                        "the file would be one row"
                    ) from error
                yield number, {}, f"not CSV ({error}); expected cells between commas"
                continue
            if cells:
                number += 1
                content, problem = _cells(cells, header)
                yield number, content, problem


def _cells(cells: list[str], header: list[str]) -> tuple[dict[str, Any], str | None]:
    if len(cells) != len(header):
        return {}, f"found {len(cells)} cells; expected {len(header)}, one for each column"
    for name, cell in zip(header, cells, strict=True):
        if not _is_utf8(cell):
            return {}, f"column {name!r} is not UTF-8; expected UTF-8"
    return dict(zip(header, cells, strict=True)), None


def _parquet(path: Path, named: str) -> Iterator[Read]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    number += 1
                    yield number, json.loads(json.dumps(row, default=_as_object)), None
    except (ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"{named}: not a whole Parquet file ({reason})") from error


def _as_object(value: Any) -> dict[str, str]:
    """Keep what JSON does not have (a date, bytes) from being taken for text."""
    return {type(value).__name__: str(value)}


READERS: dict[str, Callable[[Path, str], Iterator[Read]]] = {
    "csv": _csv,
    "json": _json,
    "jsonl": _jsonl,
    "parquet": _parquet,
}
"""How each kind of file is read."""


def _decoded(content: bytes, is_start: bool) -> str:
    """Return text without a byte order mark.

    Raises:
        ValueError: It is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig" if is_start else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not UTF-8 (byte {error.start + 1} is 0x{content[error.start]:02x})"
        ) from error


def _loads(text: str) -> Any:
    """Parse JSON strictly: no NaN, no half characters.

    Raises:
        ValueError: It is not JSON.
    """
    try:
        content = json.loads(text, parse_constant=_refused)
        if "\\ud" in text.lower():
            json.dumps(content, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if error.lineno > 1 else ""
        raise ValueError(f"not JSON ({error.msg}: {line}column {error.colno})") from error
    except UnicodeEncodeError as error:
        raise ValueError("not UTF-8 (half of a surrogate pair)") from error
    except RecursionError as error:
        raise ValueError("not JSON (nested too deeply)") from error
    return content


def _refused(constant: str) -> Any:
    raise ValueError(f"not JSON ({constant})")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
