"""Calibration text: the windows of tokens on which layers are scored."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from lamina.data.chat.template import ChatTemplate, own_template
from lamina.data.splits import Split
from lamina.data.tokenization import IGNORED, Tokenization, encode_text
from lamina.errors import DataError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

Token = tuple[int, int, bool]
"""Id, position in its document, and whether its prediction is scored."""


@dataclass(frozen=True)
class Windows:
    """Token ids without padding."""

    ids: "torch.Tensor"
    """(windows, tokens)."""
    positions: "torch.Tensor | None"
    """Position of each token in its document (windows, tokens); None if each window is one text."""
    scored: "torch.Tensor"
    """Whether a token's prediction is scored (windows, tokens); never true for a window's first."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def length(self) -> int:
        """Tokens per window."""
        return int(self.ids.shape[1])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all tensors."""
        digest = sha256(f"{tuple(self.ids.shape)}".encode())
        for tensor in (self.ids, self.positions, self.scored):
            digest.update(b"-" if tensor is None else tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def __getitem__(self, part: slice | tuple[slice, slice]) -> "Windows":
        positions = None if self.positions is None else self.positions[part]
        return Windows(self.ids[part], positions, self.scored[part])

    def neighbours(self) -> "tuple[Windows, Windows] | None":
        """Return the first window's beginning with two documents, and its second one alone.

        None if no window has two.
        """
        for row, places in enumerate(self.positions if self.positions is not None else ()):
            starts = [*(places == 0).nonzero()[:, 0].tolist(), self.length]
            if len(starts) > 2:
                return self[row : row + 1, : starts[2]], self[row : row + 1, starts[1] : starts[2]]
        return None

    def split(self, size: int) -> "Iterator[Windows]":
        """Yield portions of at most `size` windows."""
        for start in range(0, len(self), size):
            yield self[start : start + size]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How rows become windows."""

    tokens: int
    """Tokens per set, rounded down to full windows."""
    length: int
    """Tokens per window."""
    sets: int
    """Number of sets: the first is the beginning of the text; the others are drawn from the windows
    after it, without overlap."""
    seed: int
    """Seed of the draws."""
    apart: bool
    """Whether rows are kept apart and only trained tokens are scored, as in training; otherwise the
    rows form one text."""
    loss_on: str
    """Which tokens are trained: data.loss_on."""

    def windows(
        self, split: Split, tokenizer: "PreTrainedTokenizerBase"
    ) -> tuple[Windows, tuple[range, ...]]:
        """Cut the rows into windows, and return the windows and the range that forms each set.

        Rows are tokenized and concatenated in their order. Joined rows have the tokenizer's own
        special tokens (a chat its template), and a window ends wherever it is full. Rows kept apart
        are tokenized as for training, and the part of a row that does not fit into its window is
        left out, as is a window without a trained token. An incomplete last window is dropped.
        Raises DataError if a row cannot be used, or there is too little text.
        """
        count = self.tokens // self.length
        # Several sets are drawn from all of the text, so all of it is tokenized.
        found = list(self._cut(split, tokenizer, None if self.sets > 1 else count))
        if len(found) < self.sets:
            trained, other = ("", "a shorter window")
            if self.apart:
                trained, other = " that hold a trained one", "another max_seq_length"
            raise DataError(
                f"{split.origin}: its text fills {len(found)} windows of "
                f"max_seq_length={self.length} tokens{trained}, and {self.sets} are needed: use "
                f"more text or {other}"
            )
        count = min(count, len(found) // self.sets)
        rest = list(range(count, len(found)))
        random.Random(self.seed).shuffle(rest)
        chosen = [*range(count), *rest[: count * (self.sets - 1)]]
        sets = tuple(range(i * count, (i + 1) * count) for i in range(self.sets))
        return self._tensors([found[index] for index in chosen]), sets

    def _tensors(self, windows: list[list[Token]]) -> Windows:
        import torch

        ids, positions, scored = torch.tensor(windows).unbind(dim=-1)
        scored = scored.bool()
        scored[:, 0] = False
        return Windows(ids, positions if self.apart else None, scored)

    def _cut(
        self, split: Split, tokenizer: "PreTrainedTokenizerBase", enough: int | None
    ) -> Iterator[list[Token]]:
        window: list[Token] = []
        number = 0
        for row in self._documents(split, tokenizer):
            window += row
            while len(window) >= self.length:
                # A prompt may fill a window of rows apart: nothing in it would be scored.
                if any(scored for _, _, scored in window[1 : self.length]):
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
        return encode_text(tokenizer, "".join(parts))
    messages = [message for part in parts for message in part]
    return list(ChatTemplate(tokenizer, own_template(tokenizer)).encode(messages)["input_ids"])
