"""Token counts of a split, and the check of how many tokens truncation drops."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lamina.data.splits import Split
from lamina.errors import ConfigError, DataError

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class TokenCount:
    """Rows and tokens of a split that are kept and lost."""

    rows: int
    """Rows that are trained or evaluated on."""
    rows_skipped: int
    """Unusable rows, with data.on_bad_row=skip."""
    rows_dropped: int
    """Rows without a trained token in the first max_seq_length tokens."""
    tokens_in: int
    """Tokens of all usable rows."""
    tokens: int
    """Tokens kept."""
    tokens_dropped: int
    """Tokens beyond max_seq_length or in dropped rows."""
    tokens_trained: int
    """Tokens whose prediction is trained."""


@dataclass(frozen=True)
class TokenizedSplit:
    """A split as token ids."""

    rows: "Dataset"
    """Columns input_ids and labels."""
    origin: str
    count: TokenCount
    skipped: tuple[dict[str, Any], ...]
    """Origin, row (1-based) and problem of each unusable row."""
    lengths: Sequence[int]
    """Tokens of each row before truncation."""
    starts: Sequence[int]
    """0-based place of each row's first trained token."""

    def check_truncation(self, allowed: float, max_seq_length: int) -> None:
        """Raise a DataError if more than `allowed`, data.max_dropped, of the tokens are dropped."""
        lost, total = self.count.tokens_dropped, self.count.tokens_in
        if lost <= allowed * total:
            return
        complete, enough = self._length_that_drops(0), self._length_that_drops(allowed)
        lengths = f"max_seq_length={complete} drops none"
        if enough < complete:
            lengths += f", {enough} no more than allowed"
        raise DataError(
            f"{self.origin}: {lost / total:.1%} of the tokens ({lost:,} of {total:,}) lie beyond "
            f"max_seq_length={max_seq_length}, but data.max_dropped={allowed:g}: {lengths}; or "
            "raise data.max_dropped"
        )

    def _length_that_drops(self, allowed: float) -> int:
        """Return the smallest max_seq_length that drops no more than a share of the tokens."""
        import numpy

        lengths, starts = numpy.asarray(self.lengths), numpy.asarray(self.starts)
        return 1 + bisect_left(
            range(1, int(lengths.max())),
            -allowed * lengths.sum(),
            key=lambda n: -numpy.where(starts >= n, lengths, numpy.maximum(lengths - n, 0)).sum(),
        )


def account(split: Split, tokenized: "Dataset", max_seq_length: int) -> TokenizedSplit:
    """Drop the rows without a trained token, and count; raises DataError if no row is left."""
    problems = tokenized["problem"][:]  # iterating over the column would decode row by row
    skipped = tuple(
        {**dict(zip(("origin", "row"), split.where(index), strict=True)), "problem": problem}
        for index, problem in enumerate(problems)
        if problem is not None
    )
    readable = _where(tokenized, [problem is None for problem in problems])
    kept = _where(readable, readable["trained"][:])
    if len(readable) == 0:
        raise split.error(0, f"{problems[0]}; all {len(problems):,} rows are unusable")
    if len(kept) == 0:
        raise DataError(
            f"{split.origin}: no trained token within max_seq_length={max_seq_length}; raise it"
        )
    lengths = readable["length"][:]
    left = sum(min(length, max_seq_length) for length in kept["length"][:])
    count = TokenCount(
        rows=len(kept),
        rows_skipped=len(skipped),
        rows_dropped=len(readable) - len(kept),
        tokens_in=sum(lengths),
        tokens=left,
        tokens_dropped=sum(lengths) - left,
        tokens_trained=sum(kept["trained"][:]),
    )
    rows = kept.select_columns(["input_ids", "labels"])
    return TokenizedSplit(rows, split.origin, count, skipped, lengths, readable["start"][:])


def _where(rows: "Dataset", wanted: Sequence[Any]) -> "Dataset":
    """Return the wanted rows; `select` would slow down the reading of all of them."""
    return rows if all(wanted) else rows.select([i for i, each in enumerate(wanted) if each])


def pack_fill(rows: "Dataset", counted: TokenCount, length: int) -> float | None:
    """Return the share of the packs' places that hold a token, 0 to 1; None without packing.

    Raises ConfigError if the trainer's `rows` have other tokens than the `counted` ones.
    """
    import pyarrow.compute as compute

    column = rows.with_format("arrow")[:].column("input_ids")
    tokens = compute.sum(compute.list_value_length(column)).as_py()
    if tokens != counted.tokens:
        raise ConfigError(
            f"trainer.args leaves {tokens:,} of {counted.tokens:,} tokens: leave "
            "trainer.args.max_length at max_seq_length"
        )
    if "seq_lengths" not in rows.column_names:
        return None
    return float(tokens / (len(rows) * length))
