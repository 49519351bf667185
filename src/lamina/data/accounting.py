"""What became of a split's rows and tokens, and how much of them may be lost."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lamina.data.splits import Split
from lamina.errors import ConfigError, DataError

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class TokenCount:
    """What became of a split's tokens."""

    rows: int
    """Rows that are trained or evaluated on."""
    rows_skipped: int
    """Rows that cannot be used, with data.on_bad_row=skip."""
    rows_dropped: int
    """Rows with no trained token within the first max_seq_length tokens."""
    tokens_in: int
    """Tokens of all rows that can be used."""
    tokens: int
    """Tokens of them that are kept."""
    tokens_dropped: int
    """Tokens beyond max_seq_length, or in dropped rows."""
    tokens_trained: int
    """Tokens whose prediction is trained."""


@dataclass(frozen=True)
class TokenizedSplit:
    """A split as token ids: a data set with the columns input_ids and labels."""

    rows: "Dataset"
    origin: str
    count: TokenCount
    skipped: tuple[dict[str, Any], ...]
    """Origin, row (1-based) and problem of each row that cannot be used."""
    lengths: Sequence[int]
    """Tokens of each row before the cut."""
    starts: Sequence[int]
    """0-based place of each row's first trained token."""

    def as_dict(self) -> dict[str, int]:
        """Return the counts for result.json."""
        return asdict(self.count)

    def refuse_losses(self, allowed: float, max_seq_length: int) -> None:
        """Refuse to lose more than a share of the tokens.

        Args:
            allowed: The share, 0 to 1: data.max_dropped.
            max_seq_length: Tokens at which rows were cut.

        Raises:
            DataError: More is lost; the message says at which max_seq_length it would be less.
        """
        lost, total = self.count.tokens_dropped, self.count.tokens_in
        if lost <= allowed * total:
            return
        lengths = f"max_seq_length={self._length_that_loses(0)} loses none"
        if (enough := self._length_that_loses(allowed)) < self._length_that_loses(0):
            lengths += f", {enough} no more than that"
        raise DataError(
            f"{self.origin}: {lost / total:.1%} of the tokens ({lost:,} of {total:,}) lie beyond "
            f"max_seq_length={max_seq_length}, and data.max_dropped={allowed:g} is allowed: "
            f"{lengths}; or raise data.max_dropped"
        )

    def _length_that_loses(self, allowed: float) -> int:
        """Return the smallest max_seq_length with which no more than a share is lost."""
        import numpy

        lengths, starts = numpy.asarray(self.lengths), numpy.asarray(self.starts)
        below, enough = 0, int(lengths.max())
        while enough - below > 1:
            middle = (below + enough) // 2
            cut = numpy.where(starts >= middle, lengths, numpy.maximum(lengths - middle, 0))
            if cut.sum() <= allowed * lengths.sum():
                enough = middle
            else:
                below = middle
        return enough


def account(split: Split, tokenized: "Dataset", max_seq_length: int) -> TokenizedSplit:
    """Leave out the rows without a trained token, and count what is lost.

    Args:
        split: The rows as they came.
        tokenized: What `lamina.data.tokenization` made of each of them.
        max_seq_length: Tokens at which they were cut.

    Raises:
        DataError: Nothing is left.
    """
    problems = tokenized["problem"][:]  # iterated as it is, each row would be decoded by itself
    skipped = tuple(
        {**dict(zip(("origin", "row"), split.where(index), strict=True)), "problem": problem}
        for index, problem in enumerate(problems)
        if problem is not None
    )
    readable = tokenized
    if skipped:
        readable = tokenized.select([i for i, problem in enumerate(problems) if problem is None])
    trained = readable["trained"][:]
    usable = [index for index, count in enumerate(trained) if count]
    kept = readable if len(usable) == len(readable) else readable.select(usable)
    if len(kept) == 0:
        raise DataError(f"{split.origin}: no trained token within max_seq_length={max_seq_length}")
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


def pack_fill(rows: "Dataset", counted: TokenCount, length: int) -> float | None:
    """Return how full the packs are, once the trainer has made them.

    Args:
        rows: The trainer's; a pack has the column seq_lengths.
        counted: The tokens that it was given.
        length: Tokens that fit into one pack.

    Returns:
        The share of the packs' places that hold a token; None without packing.

    Raises:
        ConfigError: The trainer has other tokens than were counted.
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
