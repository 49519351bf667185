"""What a training eats: both splits as token ids, and the prompts that show what it learnt."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.data.accounting import TokenizedSplit, pack_fill
from lamina.data.sources import DataSource
from lamina.data.splits import Split
from lamina.data.tokenization import Tokenization
from lamina.measure.results import ROWS_FILE, SKIPPED_FILE
from lamina.runtime.files import write_rows

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Feed:
    """Tokenized rows and sample prompts."""

    train: TokenizedSplit
    eval: TokenizedSplit
    prompts: tuple[tuple[str, list[int]], ...]
    """What the first evaluation rows ask: as people read it, and as tokens up to the answer."""

    def eval_rows(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Return the first `limit` tokenized evaluation rows, or all of them."""
        rows = self.eval.rows
        return list(rows if limit is None else rows.select(range(min(limit, len(rows)))))

    def write(self, folder: Path, limit: int) -> None:
        """Write eval.jsonl, the first `limit` evaluated rows, and skipped_rows.jsonl if any were.

        Raises:
            OutputError: A file cannot be written.
        """
        write_rows(folder / ROWS_FILE, self.eval_rows(limit))
        if skipped := [*self.train.skipped, *self.eval.skipped]:
            write_rows(folder / SKIPPED_FILE, skipped)

    def counts(self) -> dict[str, dict[str, Any]]:
        """Return what became of each split's tokens."""
        return {"train": self.train.as_dict(), "eval": self.eval.as_dict()}

    def packed(self, made: "Mapping[str, Dataset]", length: int) -> dict[str, dict[str, Any]]:
        """Return the counts, and how full the packs are.

        Args:
            made: What became of train and eval in the trainer.
            length: Tokens that fit into one pack.

        Raises:
            ConfigError: It cut rows that were not to be cut.
        """
        return {
            name: {**split.as_dict(), "pack_fill": pack_fill(made[name], split.count, length)}
            for name, split in (("train", self.train), ("eval", self.eval))
        }


LONG = 10_000
"""Rows from which on tokenizing takes more than a second or two, and shows a progress bar."""


def feed(
    data: DataSource,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_seq_length: int,
    num_prompts: int,
) -> Feed:
    """Load a data set and tokenize it.

    Args:
        data: Where the rows come from.
        tokenizer: The model's.
        max_seq_length: Tokens at which a row is cut.
        num_prompts: Prompts to take from the evaluation rows.

    Raises:
        DataError: The data set is missing, empty, or has a row that cannot be used, or too much of
            it lies beyond max_seq_length.
        ConfigError: data.loss_on does not go with the rows or the chat template.
    """
    splits = data.load()
    _show_progress(len(splits.train.rows) + len(splits.eval.rows))
    tokenize = Tokenization(tokenizer, data.loss_on, max_seq_length, splits.train)
    _say_conversion(splits.train)
    train, held = tokenize(splits.train), tokenize(splits.eval)
    for split in (train, held):
        split.refuse_losses(data.max_dropped, max_seq_length)
        _say_skipped(split)
    # A row in which the assistant speaks first can be trained on, but asks nothing.
    asking = replace(splits.eval, skips=True).each(tokenize.prompt)
    prompts = tuple(islice(asking, num_prompts))
    return Feed(train=train, eval=held, prompts=prompts)


SHOWN = 3
"""Skipped rows that are said on the console; the run folder's file lists all of them."""


def _say_conversion(split: Split) -> None:
    """Say how rows are read that do not come as they are trained."""
    conversion = split.conversion
    if conversion.form != conversion.columns:
        trained = " and ".join(conversion.columns)
        logger.info("reading %s as %s", conversion.description, trained)


def _say_skipped(split: TokenizedSplit) -> None:
    """Say how many rows were skipped, and why the first ones."""
    if not split.skipped:
        return
    lines = [f"{row['origin']}, row {row['row']}: {row['problem']}" for row in split.skipped]
    logger.warning(
        "skipped %d of %d rows, listed in skipped_rows.jsonl:\n  %s",
        len(lines),
        len(lines) + split.count.rows + split.count.rows_dropped,
        "\n  ".join(lines[:SHOWN]),
    )


def _show_progress(num_rows: int) -> None:
    from datasets import disable_progress_bars, enable_progress_bars

    if num_rows < LONG:
        disable_progress_bars()
    else:
        enable_progress_bars()
