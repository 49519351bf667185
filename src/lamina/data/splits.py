"""Splits of a data set: rows, where each of them stands, and in which form they are read."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from lamina.data.forms import Conversion, conversion_of
from lamina.data.rows import BadRowError
from lamina.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

Used = TypeVar("Used")


@dataclass(frozen=True)
class Split:
    """Rows and the name by which an error speaks of them."""

    rows: "Dataset"
    """As they come; `read` turns one into the columns that training knows."""

    origin: str
    """Name of the whole, for an error."""

    files: tuple[str, ...] = ()
    """Names of the files that the rows come from, as `lamina.data.files` reads them; empty for
    data sets that have their own columns."""

    positions: Sequence[int] | None = None
    """0-based places of the rows in the data set that they were chosen from; None: as they are."""

    names: Mapping[str, str] = field(default_factory=dict)
    """Data set's own names of the columns, by the names of a form: data.columns."""

    skips: bool = False
    """Whether a row that cannot be used is left out instead of refused."""

    @cached_property
    def conversion(self) -> Conversion:
        """How these rows are read.

        Raises:
            DataError: There are no rows, or their columns are of no known form.
        """
        if len(self.rows) == 0:
            raise DataError(f"{self.origin}: no rows")
        if not self.files:
            return conversion_of(self.rows.column_names, self.names, f"{self.origin}, row 1")
        refused: DataError | None = None
        for index, row in enumerate(self.rows):
            try:
                if row["problem"]:
                    raise DataError(f"{self.place(index)}: {row['problem']}")
                return conversion_of(list(row["content"]), self.names, self.place(index))
            except DataError as error:
                refused = refused or error
                if not self.skips:
                    break
        assert refused is not None
        raise refused

    def where(self, index: int) -> tuple[str, int]:
        """Return where a row stands: its file, or the split's name, and its 1-based number."""
        if self.files:
            row = self.rows[index]
            return self.files[row["file"]], row["row"]
        return self.origin, (index if self.positions is None else self.positions[index]) + 1

    def place(self, index: int) -> str:
        """Return where a row stands, in words."""
        origin, number = self.where(index)
        return f"{origin}, row {number}"

    def usable(self) -> Iterator[dict[str, Any]]:
        """Yield the rows in the columns that training knows.

        Raises:
            DataError: One cannot be used, and bad rows are not skipped.
        """
        return self.each(lambda row: row)

    def each(self, use: Callable[[dict[str, Any]], Used]) -> Iterator[Used]:
        """Yield what `use` makes of each row in the columns that training knows.

        Args:
            use: May raise BadRowError.

        Raises:
            DataError: A row cannot be used, and bad rows are not skipped.
        """
        for index, row in enumerate(self.rows):
            try:
                used = use(read(row, self.conversion, bool(self.files)))
            except BadRowError as error:
                if not self.skips:
                    raise self.refusal(index, error) from error
            else:
                yield used

    def select(self, indices: Sequence[int], origin: str) -> "Split":
        """Return some of the rows under another name; each still knows where it stood."""
        before = self.positions
        positions = indices if before is None else [before[index] for index in indices]
        return replace(self, rows=self.rows.select(indices), origin=origin, positions=positions)

    def refusal(self, index: int, error: BadRowError) -> DataError:
        """Return what is said of a row that cannot be used."""
        return DataError(f"{self.place(index)}: {error}")


@dataclass(frozen=True)
class Splits:
    """Training and evaluation rows; no row is in both."""

    train: Split
    eval: Split


def held_out(split: Split, fraction: float) -> Splits:
    """Hold out a share of the rows for evaluation, the same rows whatever the run's seed.

    Both parts keep the rows' order.

    Raises:
        DataError: The share is not between 0 and 1, or leaves one side empty.
    """
    if not 0 < fraction < 1:
        raise DataError(f"data.eval_fraction={fraction}: give a share above 0 and below 1")
    count = len(split.rows)
    size = round(count * fraction)
    if not 0 < size < count:
        raise DataError(
            f"data.eval_fraction={fraction} of {count} rows in {split.origin} leaves one "
            "side empty: give data.eval or more rows"
        )
    held = set(random.Random(0).sample(range(count), size))
    return Splits(
        split.select([i for i in range(count) if i not in held], f"{split.origin} (training part)"),
        split.select(sorted(held), f"{split.origin} (held-out part)"),
    )


def first_rows(splits: Splits, count: int | None) -> Splits:
    """Return splits with no more than the first `count` training rows; None keeps them all."""
    if count is None:
        return splits
    train = splits.train
    return replace(splits, train=train.select(range(min(count, len(train.rows))), train.origin))


def read(row: dict[str, Any], conversion: Conversion, from_files: bool) -> dict[str, Any]:
    """Return a row in the columns that training knows.

    Args:
        row: As it stands in `Split.rows`.
        conversion: The split's.
        from_files: Whether the split has `files`.

    Raises:
        BadRowError: It cannot be used.
    """
    if not from_files:
        return conversion(row)
    if row["problem"]:
        raise BadRowError(row["problem"])
    return conversion(row["content"])
