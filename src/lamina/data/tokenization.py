"""Rows to token ids and labels: a label is the token's id where it is trained, -100 elsewhere."""

import json
from collections.abc import Callable, Sequence
from itertools import groupby, takewhile
from typing import TYPE_CHECKING, Any

from lamina.data.accounting import TokenizedSplit, account
from lamina.data.cache import cached_map
from lamina.data.chat.mask import assistant_mask
from lamina.data.chat.template import ChatTemplate, Tools, marked_template, own_template
from lamina.data.forms import Conversion
from lamina.data.splits import Split, convert
from lamina.errors import BadRowError, ConfigError, DataError
from lamina.measure.tasks.forward import shared_start

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of a token that is not trained."""


class _RefusedError(Exception):
    """Carries a bad row's 0-based index, and the BadRowError, out of the library's loop."""


class Tokenization:
    """Tokenizes rows of one form with one tokenizer."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", loss_on: str, max_seq_length: int, split: Split
    ) -> None:
        """Take the form, which every split must have, from a split's columns.

        `loss_on` is data.loss_on; rows are cut to `max_seq_length` tokens. Raises DataError if
        there are no rows or the columns fit no form, and ConfigError if the form or the chat
        template does not support `loss_on`.
        """
        self.tokenizer = tokenizer
        self.max_seq_length = max_seq_length
        default = split.conversion.trained
        self.columns = split.conversion.columns
        self.loss_on = default if loss_on == "auto" else loss_on
        if self.loss_on not in ("all", default):
            raise ConfigError(
                f"data.loss_on={loss_on}, but {split.origin} has {split.conversion.description}: "
                f"use auto, all{'' if default == 'all' else ' or ' + default}"
            )
        self.marked = marked_template(tokenizer) if self.loss_on == "assistant" else None
        if default == "assistant":
            own_template(tokenizer)  # refuse a tokenizer without one before a row is read
        ends = {*tokenizer.get_added_vocab().values(), tokenizer.eos_token_id} - {None}
        unchecked = self.columns == ("messages",) and self.loss_on == "all"
        self.ends = frozenset() if unchecked else frozenset(ends)

    def __call__(self, split: Split) -> TokenizedSplit:
        """Tokenize every row of a split.

        Raises DataError if a row is unusable or no row has a trained token, and ConfigError if the
        end of a row's answer would not be trained.
        """
        if split.conversion.columns != self.columns:
            raise DataError(
                f"{split.origin} has {split.conversion.description}, the training rows "
                f"{' and '.join(self.columns)}: give both the same columns"
            )
        tokenized = self._mapped(split, self._encoded, _features(), f"tokenizing {split.origin}")
        self._refuse_unended(split, tokenized["unended"][:])
        return account(split, tokenized, self.max_seq_length)

    def questions(self, split: Split) -> "Dataset":
        """Return each row's question, the token ids up to its answer, and its trained columns.

        These are JSON and lack the answer; `problem` says why a row is unusable. Raises DataError
        as `__call__` does.
        """
        from datasets import Features, List, Value

        texts = dict.fromkeys(("question", "content", "problem"), Value("string"))
        features = Features(prompt_ids=List(Value("int32")), **texts)
        return self._mapped(split, self._asked, features, f"reading prompts of {split.origin}")

    def _mapped(
        self, split: Split, make: Callable[..., Any], features: "Features", desc: str
    ) -> "Dataset":
        try:
            return cached_map(
                split.rows,
                make,
                features=features,
                desc=desc,
                conversion=split.conversion,
                from_files=bool(split.files),
                skips=split.skips,
            )
        except _RefusedError as refused:
            raise split.error(*refused.args) from refused

    def prompt(self, row: dict[str, Any]) -> tuple[str, list[int], str]:
        """Return a question as text, all tokens before its answer, and the expected answer.

        Raises BadRowError if the row does not start with a question.
        """
        if "messages" in self.columns:
            turns = _before_answer(row)
            text, rest = turns[-1]["content"], row["messages"][len(turns) :]
            expected = str(rest[0].get("content") or "") if rest else ""
            return text, self._prompt_ids(turns, row.get("tools")), expected
        if "prompt" in self.columns:
            prompt = row["prompt"]
            text, expected = (
                part if isinstance(part, str) else str(part[-1].get("content") or "")
                for part in (prompt, row["completion"])
            )
            return text, self._prompt_ids(prompt), expected
        ids = encode_text(self.tokenizer, row["text"])[: self.max_seq_length]
        half = max(1, len(ids) // 2)
        return self.tokenizer.decode(ids[:half]), ids[:half], self.tokenizer.decode(ids[half:])

    def row(self, row: dict[str, Any]) -> dict[str, Any]:
        """Tokenize one converted row.

        Return input_ids and labels, cut to max_seq_length; trained: number of trained tokens in
        them; length: tokens before the cut; start: 0-based place of the first trained token;
        unended: whether the end of an answer is not trained.
        """
        encode: dict[str, Callable[[dict[str, Any]], tuple[list[int], Sequence[int]]]] = {
            "messages": self._messages,
            "prompt": self._completion,
            "text": self._text,
        }
        ids, mask = encode[self.columns[0]](row)
        labels = [i if kept else IGNORED for i, kept in zip(ids, mask, strict=True)]
        is_chat = not isinstance(row[self.columns[0]], str)
        # The first token is never predicted, so it does not count as trained.
        places = [at for at, kept in enumerate(mask) if kept and at > 0]
        return {
            "input_ids": ids[: self.max_seq_length],
            "labels": labels[: self.max_seq_length],
            "trained": sum(at < self.max_seq_length for at in places),
            "length": len(ids),
            "start": places[0] if places else len(ids),
            "unended": not self._ends_are_trained(ids, mask, is_chat),
        }

    def _encoded(
        self, row: dict[str, Any], index: int, conversion: Conversion, from_files: bool, skips: bool
    ) -> dict[str, Any]:
        try:
            return {**self.row(convert(row, conversion, from_files)), "problem": None}
        except BadRowError as error:
            if not skips:
                raise _RefusedError(index, error) from error
            none = {"trained": 0, "length": 0, "start": 0, "unended": False}
            return {"input_ids": [], "labels": [], **none, "problem": str(error)}

    def _asked(
        self, row: dict[str, Any], index: int, conversion: Conversion, from_files: bool, skips: bool
    ) -> dict[str, Any]:
        try:
            read = convert(row, conversion, from_files)
            text, ids, _ = self.prompt(read)
        except BadRowError as error:
            if not skips:
                raise _RefusedError(index, error) from error
            return {"question": "", "prompt_ids": [], "content": "{}", "problem": str(error)}
        if "messages" in read:
            content = {"messages": _before_answer(read), "tools": read["tools"]}
        else:
            content = {"prompt": read["prompt"]}
        return {
            "question": text,
            "prompt_ids": ids,
            "content": json.dumps(content),
            "problem": None,
        }

    def _messages(self, row: dict[str, Any]) -> tuple[list[int], Sequence[int]]:
        messages, tools, chat = row["messages"], row.get("tools"), self._chat
        masked = self.loss_on == "assistant"
        chat.refuse_lost(messages, tools, reasoning=masked)
        if masked and not self.marked:
            return assistant_mask(chat, messages, tools, self.ends)
        encoded = chat.encode(messages, tools=tools, return_assistant_tokens_mask=masked)
        ids = encoded["input_ids"]
        return ids, encoded["assistant_masks"] if masked else [1] * len(ids)

    def _completion(self, row: dict[str, Any]) -> tuple[list[int], Sequence[int]]:
        prompt_ids = self._prompt_ids(row["prompt"])
        if isinstance(row["prompt"], str):
            ids = encode_text(self.tokenizer, self._ended(row["prompt"] + row["completion"]))
        else:
            messages = row["prompt"] + row["completion"]
            self._chat.refuse_lost(messages, None, reasoning=self.loss_on != "all")
            ids = self._chat.encode(messages)["input_ids"]
        if self.loss_on == "all":
            return ids, [1] * len(ids)
        # Tokens may merge across the boundary: the completion starts where the two first differ.
        start = shared_start([prompt_ids, ids])
        return ids, [0] * start + [1] * (len(ids) - start)

    def _text(self, row: dict[str, Any]) -> tuple[list[int], Sequence[int]]:
        ids = encode_text(self.tokenizer, self._ended(row["text"]))
        return ids, [1] * len(ids)

    def _prompt_ids(self, prompt: Any, tools: Tools = None) -> list[int]:
        if not isinstance(prompt, str):
            encoded = self._chat.encode(prompt, tools=tools, add_generation_prompt=True)
            return list(encoded["input_ids"])
        ids = encode_text(self.tokenizer, prompt)
        end = self.tokenizer.eos_token_id
        is_added = len(ids) > 1 and ids[-1] == end and not self._is_ended(prompt)
        return ids[:-1] if is_added else ids

    @property
    def _chat(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer, self.marked or own_template(self.tokenizer))

    def _ended(self, text: str) -> str:
        return text if self._is_ended(text) else text + (self.tokenizer.eos_token or "")

    def _is_ended(self, text: str) -> bool:
        return text.endswith(self.tokenizer.eos_token or "")

    def _ends_are_trained(self, ids: Sequence[int], mask: Sequence[int], is_chat: bool) -> bool:
        """Whether the token that ends an answer is trained: without it no model learns to stop.

        Plain text must end with the end-of-text token. In a chat every run of trained tokens must
        end with an added token, blanks behind it aside, as in TRL's check of templates. A chat that
        is trained on all tokens is not checked.
        """
        if not is_chat:
            return bool(ids) and bool(mask[-1]) and ids[-1] == self.tokenizer.eos_token_id
        if not self.ends:
            return True
        pairs = zip(mask, ids, strict=True)
        runs = [[i for _, i in run] for kept, run in groupby(pairs, lambda p: p[0]) if kept]
        return bool(runs) and all(self._last_visible(run) in self.ends for run in runs)

    def _last_visible(self, run: list[int]) -> int | None:
        visible = (i for i in reversed(run) if i in self.ends or self.tokenizer.decode([i]).strip())
        return next(visible, None)

    def _refuse_unended(self, split: Split, unended: list[bool]) -> None:
        if True in unended:
            raise ConfigError(
                f"{split.place(unended.index(True))}: the token that ends an answer would not be "
                "trained, so the model would not learn to stop; the tokenizer of "
                f"{self.tokenizer.name_or_path} has eos_token={self.tokenizer.eos_token}: use "
                "a model whose tokenizer or chat template ends an answer with it, or set "
                "data.chat_template"
            )


def _before_answer(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the messages up to the first answer."""
    turns = list(takewhile(lambda message: message["role"] != "assistant", row["messages"]))
    if not turns:
        raise BadRowError("the first message is the assistant's; expected another before")
    return turns


def encode_text(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Tokenize text; where it has a start or end token and the tokenizer adds one, one is kept."""
    ids = list(tokenizer(text)["input_ids"])
    while len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        del ids[0]
    while len(ids) > 1 and ids[-1] == ids[-2] == tokenizer.eos_token_id:
        del ids[-1]
    return ids


def _features() -> "Features":
    """Return the columns of `_encoded`; the library would guess them from the first rows."""
    from datasets import Features, List, Value

    return Features(
        input_ids=List(Value("int32")),
        labels=List(Value("int64")),
        trained=Value("int64"),
        length=Value("int64"),
        start=Value("int64"),
        unended=Value("bool"),
        problem=Value("string"),
    )
