"""Calibration text: the windows of tokens that layers are scored on."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lamina.data.chat import show_chat
from lamina.data.splits import Split
from lamina.data.tokenization import IGNORED, Tokenization
from lamina.errors import ConfigError, DataError
from lamina.scan.windows import Windows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Token = tuple[int, int, bool]
"""Id, position in its document, and whether its prediction counts."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How rows become windows."""

    tokens: int
    """Of one set; the last window that fits in ends it."""

    length: int
    """Tokens in one window."""

    sets: int
    """The first one is the beginning of the text; further ones are drawn from the windows behind
    it, each window for one set only."""

    seed: int
    """Of the draws."""

    apart: bool
    """Whether rows are kept apart and only trained tokens count; otherwise they are one text."""

    loss_on: str
    """Which tokens are trained: data.loss_on."""

    def windows(
        self, split: Split, tokenizer: "PreTrainedTokenizerBase"
    ) -> tuple[Windows, tuple[range, ...]]:
        """Cut calibration text into windows, and say which of them form each set.

        Rows are tokenized in their order and put one behind the other. Joined, each has the
        tokenizer's own special tokens (a chat its template), and a window ends wherever it is full.
        Apart, rows are tokenized as for training, and the part of a row that does not fit into a
        window is left out. What does not fill the last window is dropped.

        Args:
            split: The rows.
            tokenizer: The model's.

        Raises:
            ConfigError: A set is shorter than one window, or no prediction would count.
            DataError: A row cannot be used, or there is too little text.
        """
        count = self.tokens // self.length
        if count < 1:
            raise ConfigError(
                f"scan.tokens={self.tokens} is less than one window of "
                f"max_seq_length={self.length} tokens: give more tokens or a shorter window"
            )
        # With several sets all text is tokenized: the draws are from the whole of it.
        found = list(self._cut(split, tokenizer, None if self.sets > 1 else count))
        if len(found) < self.sets:
            raise DataError(
                f"{split.origin}: its text fills {len(found)} windows of "
                f"max_seq_length={self.length} tokens, and {self.sets} are needed: give more text "
                "or a shorter window"
            )
        count = min(count, len(found) // self.sets)
        rest = list(range(count, len(found)))
        random.Random(self.seed).shuffle(rest)
        chosen = [*range(count), *rest[: count * (self.sets - 1)]]
        sets = tuple(range(i * count, (i + 1) * count) for i in range(self.sets))
        return self._tensors([found[index] for index in chosen]), sets

    def _tensors(self, windows: list[list[Token]]) -> Windows:
        import torch

        ids, positions, counted = torch.tensor(windows).unbind(dim=-1)
        counted = counted.bool()
        counted[:, 0] = False
        if not counted.any():
            raise ConfigError("scan.rows=apart: no token of the calibration text is a trained one")
        return Windows(ids, positions if self.apart else None, counted)

    def _cut(
        self, split: Split, tokenizer: "PreTrainedTokenizerBase", enough: int | None
    ) -> Iterator[list[Token]]:
        window: list[Token] = []
        number = 0
        for row in self._documents(split, tokenizer):
            window += row
            while len(window) >= self.length:
                yield window[: self.length]
                number += 1
                if number == enough:
                    return
                window = [] if self.apart else window[self.length :]

    def _documents(
        self, split: Split, tokenizer: "PreTrainedTokenizerBase"
    ) -> Iterator[list[Token]]:
        if not self.apart:
            columns = split.conversion.columns
            for ids in split.each(lambda row: _row_ids(row, columns, tokenizer)):
                yield [(token, 0, True) for token in ids]
            return
        tokenize = Tokenization(tokenizer, self.loss_on, self.length, split)
        for encoded in split.each(tokenize.row):
            pairs = zip(encoded["input_ids"], encoded["labels"], strict=True)
            yield [(i, at, at > 0 and lab != IGNORED) for at, (i, lab) in enumerate(pairs)]


def _row_ids(
    row: dict[str, Any], columns: tuple[str, ...], tokenizer: "PreTrainedTokenizerBase"
) -> list[int]:
    parts = [row[column] for column in columns]
    if all(isinstance(part, str) for part in parts):
        return list(tokenizer("".join(parts))["input_ids"])
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template, which rows with "
            "messages need: give rows with text"
        )
    messages = [message for part in parts for message in part]
    return list(show_chat(tokenizer, messages)["input_ids"])
