"""Files with one JSON object a line, and the line that is none."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


def read_jsonl(key: str, name: str) -> "Dataset":
    """Read a file into a data set, one row a line.

    Args:
        key: Config key that named the file, for an error.
        name: Path of the file.

    Raises:
        DataError: The file is missing or empty, or a line is not a JSON object.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    path = Path(name)
    if not path.is_file():
        raise DataError(f"{key}={name}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{key}={name}: the file is empty")
    try:
        return load_dataset("json", data_files=str(path), split="train")
    # Lines of other kinds come out of the reader as whatever they break first.
    except (DatasetGenerationError, TypeError, ValueError) as error:
        with path.open(encoding="utf-8") as lines:
            _blame(key, name, lines)
        reason = str(error.__cause__ or error).splitlines()[0]
        raise DataError(f"{key}={name} cannot be read: {reason}") from error


def _blame(key: str, name: str, lines: Iterable[str]) -> None:
    """Raise for the first line that is not a JSON object."""
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"{key}={name}, row {number}: not JSON ({error}); expected one object a line"
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"{key}={name}, row {number}: found {type(row).__name__}; expected a JSON object"
            )
