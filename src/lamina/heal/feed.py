"""What a training eats: both splits as token ids, and the prompts that show what it learnt."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lamina.heal.data import DataSource
from lamina.heal.tokenization import Tokenization, TokenizedSplit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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

    def counts(self) -> dict[str, dict[str, int]]:
        """Return what became of each split's tokens."""
        return {"train": self.train.as_dict(), "eval": self.eval.as_dict()}


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
        DataError: The data set is missing, empty, or has a row that cannot be used.
        ConfigError: data.loss_on does not go with the rows or the chat template.
    """
    splits = data.load()
    _show_progress(len(splits.train.rows) + len(splits.eval.rows))
    tokenize = Tokenization(tokenizer, data.loss_on, max_seq_length, splits.train)
    train, held = tokenize(splits.train), tokenize(splits.eval)
    rows: Iterator[dict[str, Any]] = iter(
        splits.eval.rows.select(range(min(num_prompts, len(splits.eval.rows))))
    )
    return Feed(train=train, eval=held, prompts=tuple(map(tokenize.prompt, rows)))


def _show_progress(num_rows: int) -> None:
    from datasets import disable_progress_bars, enable_progress_bars

    if num_rows < LONG:
        disable_progress_bars()
    else:
        enable_progress_bars()
