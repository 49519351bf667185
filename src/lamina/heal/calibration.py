"""Calibration text: the windows of tokens that layers are scored on."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from lamina.errors import ConfigError, DataError
from lamina.heal.data import Split
from lamina.heal.rows import FORMS, form_of, problem_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Windows:
    """Token ids without padding, and which of them form one calibration set."""

    ids: "torch.Tensor"
    """(windows, tokens)."""

    sets: tuple[range, ...]
    """Windows of each set."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of shape and token ids."""
        shape = f"{tuple(self.ids.shape)} {self.sets}".encode()
        return sha256(shape + self.ids.numpy().tobytes()).hexdigest()


def calibration_windows(
    split: Split,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    tokens: int,
    length: int,
    sets: int,
    seed: int,
) -> Windows:
    """Cut calibration text into windows.

    The rows are tokenized in their order, each with the tokenizer's own special tokens (a chat with
    its template), put one behind the other and cut into windows; what does not fill the last one is
    dropped. The first set is the beginning of the text. Further ones are drawn at random from the
    windows behind it, each window for one set only.

    Args:
        split: The rows.
        tokenizer: The model's.
        tokens: Of one set; the last window that fits in ends it.
        length: Tokens in one window.
        sets: Number of calibration sets.
        seed: Of the draws.

    Raises:
        ConfigError: A set is shorter than one window.
        DataError: A row cannot be used, or there is too little text.
    """
    import torch

    count = tokens // length
    if count < 1:
        raise ConfigError(
            f"scan.tokens={tokens} is less than one window of max_seq_length={length} tokens: give "
            "more tokens or a shorter window"
        )
    # With several sets all text is tokenized: the draws are from the whole of it.
    text = _token_ids(split, tokenizer, None if sets > 1 else count * length)
    found = len(text) // length
    if found < (sets if sets > 1 else 1):
        raise DataError(
            f"{split.origin}: {len(text):,} tokens are less than {sets} windows of "
            f"max_seq_length={length}: give more text or a shorter window"
        )
    count = min(count, found // sets)
    rest = list(range(count, found))
    random.Random(seed).shuffle(rest)
    chosen = [*range(count), *rest[: count * (sets - 1)]]
    ids = torch.tensor(text[: found * length]).view(found, length)[chosen]
    return Windows(ids, tuple(range(i * count, (i + 1) * count) for i in range(sets)))


def _token_ids(split: Split, tokenizer: "PreTrainedTokenizerBase", enough: int | None) -> list[int]:
    columns = FORMS[form_of(split)]
    ids: list[int] = []
    for row in _usable(split, columns):
        ids += _row_ids(row, columns, tokenizer)
        if enough is not None and len(ids) >= enough:
            break
    return ids


def _usable(split: Split, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(split.rows, 1):
        if problem := problem_of(row, columns):
            raise DataError(f"{split.origin}, row {number}: {problem}")
        yield row


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
    encoded = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)
    return list(encoded["input_ids"])
