"""Splits of a data set: rows with their places in the source, and how they are converted."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from lamina.data.chat.messages import without_nulls
from lamina.data.forms import Conversion, conversion_of
from lamina.errors import BadRowError, DataError

if TYPE_CHECKING:
    from datasets import Dataset

Used = TypeVar("Used")


@dataclass(frozen=True)
class Split:
    """Rows and their origin."""

    rows: "Dataset"
    """As the source has them; `convert` returns the trained columns."""
    origin: str
    """Name of the split, for errors."""
    files: tuple[str, ...] = ()
    """Names of the files that `lamina.data.files` read; empty if `rows` has columns of its own."""
    sources: tuple[str, ...] = ()
    """Of a blend: each file's source."""
    positions: Sequence[int] | None = None
    """0-based places of the rows in the source's data set; None if `rows` is all of it."""
    names: Mapping[str, str] = field(default_factory=dict)
    """data.columns: the data set's names of a form's columns."""
    skips: bool = False
    """Whether an unusable row is left out; otherwise it is an error."""

    @cached_property
    def conversion(self) -> Conversion:
        """The conversion that fits the first usable row's columns; raises DataError without one."""
        if len(self.rows) == 0:
            raise DataError(f"{self.origin}: no rows")
        if not self.files:
            return conversion_of(self.rows.column_names, self.names, f"{self.origin}, row 1")
        first: DataError | None = None
        for index, row in enumerate(self.rows):
            try:
                if row["problem"]:
                    raise self.error(index, row["problem"])
                columns = list(json.loads(row["content"]))
                return conversion_of(columns, self.names, self.place(index))
            except DataError as error:
                first = first or error
                if not self.skips:
                    break
        assert first is not None
        raise first

    def where(self, index: int) -> tuple[str, int]:
        """Return a row's file, or the split's name, and its 1-based number there."""
        if self.files:
            row = self.rows[index]
            return self.files[row["file"]], row["row"]
        return self.origin, (index if self.positions is None else self.positions[index]) + 1

    def per_source(self) -> dict[str, int]:
        """Return how many rows of a blend come from each source; nothing for other data."""
        if not self.sources:
            return {}
        return dict(Counter(self.sources[file] for file in self.rows["file"][:]))

    def numbers(self) -> tuple[Sequence[int], Sequence[int]]:
        """Return each row's 0-based file, 0 if there are none, and its 1-based number there."""
        if self.files:
            return self.rows["file"][:], self.rows["row"][:]
        positions = range(len(self.rows)) if self.positions is None else self.positions
        return [0] * len(self.rows), [position + 1 for position in positions]

    def place(self, index: int) -> str:
        """Return `where` as text."""
        origin, number = self.where(index)
        return f"{origin}, row {number}"

    def error(self, index: int, problem: object) -> DataError:
        """Return the error for an unusable row."""
        return DataError(f"{self.place(index)}: {problem}")

    def usable(self) -> Iterator[dict[str, Any]]:
        """Yield the rows in the trained columns; `each` lists the errors."""
        return self.each(lambda row: row)

    def each(self, use: Callable[[dict[str, Any]], Used]) -> Iterator[Used]:
        """Yield `use` of each row's trained columns; it may raise BadRowError.

        Without `skips`, a DataError names an unusable row.
        """
        for index, row in enumerate(self.rows):
            try:
                used = use(convert(row, self.conversion, bool(self.files)))
            except BadRowError as error:
                if not self.skips:
                    raise self.error(index, error) from error
            else:
                yield used

    def select(self, indices: Sequence[int], origin: str) -> "Split":
        """Return some of the rows under another name; they keep their places in the source."""
        before = self.positions
        positions = indices if before is None else [before[index] for index in indices]
        return replace(self, rows=self.rows.select(indices), origin=origin, positions=positions)


@dataclass(frozen=True)
class Splits:
    """Training and evaluation rows; no row is in both."""

    train: Split
    eval: Split


def hold_out(split: Split, fraction: float) -> Splits:
    """Divide a split into training and evaluation rows, each in the order of the source.

    The division does not depend on the run's seed, so runs evaluate on the same rows. Raises
    DataError if one side would be empty.
    """
    count = len(split.rows)
    size = round(count * fraction)
    if not 0 < size < count:
        for _ in split.usable():  # an unusable row is the first thing to mend
            pass
        raise DataError(
            f"data.eval_fraction={fraction} of {count} row{'s' * (count > 1)} in {split.origin} "
            "leaves one side empty: set data.eval, or use another fraction or more rows"
        )
    held = set(random.Random(0).sample(range(count), size))
    return Splits(
        split.select([i for i in range(count) if i not in held], f"{split.origin} (training part)"),
        split.select(sorted(held), f"{split.origin} (held-out part)"),
    )


def convert(row: dict[str, Any], conversion: Conversion, from_files: bool) -> dict[str, Any]:
    """Convert a row, `from_files` if its split has `files`; raises BadRowError if unusable."""
    if not from_files:
        return conversion({name: without_nulls(cell) for name, cell in row.items()})
    if row["problem"]:
        raise BadRowError(row["problem"])
    return conversion(json.loads(row["content"]))
