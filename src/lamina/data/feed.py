"""The tokenized rows of a training, and the prompts for its samples."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.data.accounting import TokenizedSplit, pack_fill
from lamina.data.answers.answered import AnswerCount, Original, answered, refuse_plain_text
from lamina.data.chat.template import choose_template
from lamina.data.sources import DataSource
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
    prompts: tuple[tuple[str, list[int], str], ...]
    """Questions of the first evaluation rows: readable text, all tokens before the answer, and the
    expected answer."""
    answers: AnswerCount | None = None
    """How the original's answers to the training prompts ended; None with data.answers=given."""

    sources: dict[str, int] = field(default_factory=dict)
    """Of a blend: training rows drawn from each source."""

    def eval_rows(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Return the first `limit` tokenized evaluation rows, or all of them."""
        rows = self.eval.rows
        return list(rows if limit is None else rows.select(range(min(limit, len(rows)))))

    def write(self, folder: Path, limit: int) -> None:
        """Write the first `limit` evaluation rows to eval.jsonl, skipped ones to their own file."""
        write_rows(folder / ROWS_FILE, self.eval_rows(limit))
        if skipped := [*self.train.skipped, *self.eval.skipped]:
            write_rows(folder / SKIPPED_FILE, skipped)

    def counts(self) -> dict[str, dict[str, Any]]:
        """Return each split's token counts, and those of a blend and of the original's answers."""
        more: dict[str, dict[str, Any]] = {"sources": self.sources} if self.sources else {}
        if self.answers:
            more["answers"] = asdict(self.answers)
        return {"train": asdict(self.train.count), "eval": asdict(self.eval.count), **more}

    def packed(self, made: "Mapping[str, Dataset]", length: int) -> dict[str, dict[str, Any]]:
        """Return the counts and pack_fill; raises ConfigError if `made`, TRL's rows, are cut."""
        counts = self.counts()
        for name, split in (("train", self.train), ("eval", self.eval)):
            counts[name]["pack_fill"] = pack_fill(made[name], split.count, length)
        return counts


SHOWN = 3
"""Skipped rows on the console; skipped_rows.jsonl lists all of them."""


def feed(
    data: DataSource,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_seq_length: int,
    num_prompts: int,
    original: Original | None = None,
) -> Feed:
    """Load a data set and tokenize it; rows are cut to max_seq_length tokens.

    The tokenizer gets the template of data.chat_template, which is saved with it. The
    answers of `original`, if given, to the questions of the training rows are trained. Raises
    DataError if the data set is missing, empty or has an unusable row, or truncation drops too many
    tokens, and ConfigError if the rows or the chat template do not support data.loss_on.
    """
    choose_template(tokenizer, data.chat_template)
    splits, count = data.load(), None
    if original:
        refuse_plain_text(splits.train)
    tokenize = Tokenization(tokenizer, data.loss_on, max_seq_length, splits.train)
    conversion = splits.train.conversion
    if conversion.form != conversion.columns:
        logger.info("reading %s as %s", conversion.description, " and ".join(conversion.columns))
    rows, sources = splits.train, splits.train.per_source()
    if sources:
        logger.info("training rows: %s", ", ".join(f"{n:,} of {s}" for s, n in sources.items()))
    if original:
        # First what can be refused at once.
        tokenize(splits.eval).check_truncation(data.max_dropped, max_seq_length)
        rows, count = answered(rows, tokenize, data.answer_settings, original)
    train, held = tokenize(rows), tokenize(splits.eval)
    unused = count.unused if count else 0
    for split, further in ((train, unused), (held, 0)):
        split.check_truncation(data.max_dropped, max_seq_length)
        _warn_of_skipped(split, further)
    # A row that starts with the assistant can be trained on, but asks nothing.
    asking = replace(splits.eval, skips=True).each(tokenize.prompt)
    prompts = tuple(islice(asking, num_prompts))
    return Feed(train=train, eval=held, prompts=prompts, answers=count, sources=sources)


def _warn_of_skipped(split: TokenizedSplit, further: int) -> None:
    """Name skipped rows; `further` ones have no answer of the original to train."""
    if not split.skipped:
        return
    lines = [f"{row['origin']}, row {row['row']}: {row['problem']}" for row in split.skipped]
    logger.warning(
        "skipped %d of %d rows, listed in skipped_rows.jsonl:\n  %s",
        len(lines),
        len(lines) + split.count.rows + split.count.rows_dropped + further,
        "\n  ".join(lines[:SHOWN]),
    )
