"""Rows to token ids and labels: which tokens are read, which are trained, which are lost.

Rows of every form become one of three: `messages` (a chat), `prompt` with `completion`, or `text`.
A label is the token's id where it is trained and -100 where it is not.
"""

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from lamina.data.accounting import TokenizedSplit, account
from lamina.data.cache import kept_map
from lamina.data.chat import show_chat, training_template
from lamina.data.endings import Endings
from lamina.data.forms import Conversion
from lamina.data.rows import BadRowError
from lamina.data.splits import Split, read
from lamina.data.versions import version_of
from lamina.errors import ConfigError, DataError

if TYPE_CHECKING:
    from datasets import Features
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of a token that is not trained."""

CODE = ("tokenization", "splits", "forms", "rows", "chat", "endings")
"""Modules that decide what a row becomes."""


class _RefusedError(Exception):
    """Carries a bad row's 0-based index out of the library's loop."""

    def __init__(self, index: int, reason: BadRowError) -> None:
        super().__init__(str(reason))
        self.index, self.reason = index, reason


class Tokenization:
    """How rows of one form become token ids with one tokenizer."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", loss_on: str, max_seq_length: int, split: Split
    ) -> None:
        """Decide the form from a split's columns.

        Args:
            tokenizer: The model's, with its chat template.
            loss_on: assistant, completion, all, or auto for what suits the form.
            max_seq_length: Tokens at which a row is cut.
            split: Decides the form; all splits must have it.

        Raises:
            DataError: The columns are of no known form, or there are no rows.
            ConfigError: `loss_on` does not go with the form or the chat template.
        """
        self.tokenizer = tokenizer
        self.max_seq_length = max_seq_length
        default = split.conversion.trained
        self.columns = split.conversion.columns
        self.loss_on = default if loss_on == "auto" else loss_on
        if self.loss_on not in ("all", default):
            raise ConfigError(
                f"data.loss_on={loss_on}, but {split.origin} has {split.conversion.description}: "
                f"give auto, all{'' if default == 'all' else ' or ' + default}"
            )
        self.template = None
        if default == "assistant":
            self.template = training_template(tokenizer, self.loss_on)
        self.endings = Endings.of(tokenizer, self.columns, self.loss_on)

    def __call__(self, split: Split) -> TokenizedSplit:
        """Tokenize every row of a split.

        Raises:
            DataError: A row cannot be used, or none has a trained token.
            ConfigError: The end of a row's answer would not be trained.
        """
        if split.conversion.columns != self.columns:
            raise DataError(
                f"{split.origin} has {split.conversion.description}, the training rows "
                f"{' and '.join(self.columns)}: give both the same columns"
            )
        try:
            tokenized = kept_map(
                split.rows,
                self._encoded,
                features=_features(),
                desc=f"tokenizing {split.origin}",
                conversion=split.conversion,
                from_files=bool(split.files),
                skips=split.skips,
                code=version_of(*CODE),
            )
        except _RefusedError as refused:
            raise split.refusal(refused.index, refused.reason) from refused
        self.endings.check(split, tokenized["unended"][:])
        return account(split, tokenized, self.max_seq_length)

    def prompt(self, row: dict[str, Any]) -> tuple[str, list[int]]:
        """Return what a row asks, as text for people and as all tokens up to the answer.

        Raises:
            BadRowError: Nobody asks, or the chat template does not take it.
        """
        if "messages" in self.columns:
            turns = list(takewhile(lambda m: m["role"] != "assistant", row["messages"]))
            if not turns:
                raise BadRowError("the first message is the assistant's; expected another before")
            text = turns[-1]["content"]
            return text, list(self._chat(turns, add_generation_prompt=True)["input_ids"])
        if "prompt" in self.columns:
            prompt = row["prompt"]
            text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
            return text, self._prompt_ids(prompt)
        ids = self.tokenizer(row["text"])["input_ids"][: self.max_seq_length]
        ids = list(ids[: max(1, len(ids) // 2)])
        return self.tokenizer.decode(ids), ids

    def row(self, row: dict[str, Any]) -> dict[str, Any]:
        """Tokenize one row.

        Args:
            row: Its columns, after the split's conversion.

        Returns:
            input_ids and labels, cut to max_seq_length; trained: how many of them are; length:
            before the cut; start: the first trained one's 0-based place; unended: whether the end
            of an answer is left untrained.
        """
        encode: dict[str, Callable[[dict[str, Any]], tuple[list[int], Sequence[int]]]] = {
            "messages": self._messages,
            "prompt": self._completion,
            "text": self._text,
        }
        ids, mask = encode[self.columns[0]](row)
        labels = [i if kept else IGNORED for i, kept in zip(ids, mask, strict=True)]
        unended = not self.endings.are_trained(ids, mask, self._is_chat(row))
        labels = labels[: self.max_seq_length]
        # A first token is never predicted, so it is not a trained one.
        places = [at for at, kept in enumerate(mask) if kept and at > 0]
        trained = sum(at < self.max_seq_length for at in places)
        return {
            "input_ids": ids[: self.max_seq_length],
            "labels": labels,
            "trained": trained,
            "length": len(ids),
            "start": places[0] if places else len(ids),
            "unended": unended,
        }

    def _encoded(
        self,
        row: dict[str, Any],
        index: int,
        conversion: Conversion,
        from_files: bool,
        skips: bool,
        code: str,
    ) -> dict[str, Any]:
        try:
            return {**self.row(read(row, conversion, from_files)), "problem": None}
        except BadRowError as error:
            if not skips:
                raise _RefusedError(index, error) from error
            none = {"trained": 0, "length": 0, "start": 0, "unended": False}
            return {"input_ids": [], "labels": [], **none, "problem": str(error)}

    def _is_chat(self, row: dict[str, Any]) -> bool:
        return not isinstance(row[self.columns[0]], str)

    def _messages(self, row: dict[str, Any]) -> tuple[list[int], Sequence[int]]:
        masked = self.loss_on == "assistant"
        encoded = self._chat(
            row["messages"], tools=row.get("tools"), return_assistant_tokens_mask=masked
        )
        ids = encoded["input_ids"]
        return ids, encoded["assistant_masks"] if masked else [1] * len(ids)

    def _completion(self, row: dict[str, Any]) -> tuple[list[int], Sequence[int]]:
        prompt_ids = self._prompt_ids(row["prompt"])
        if isinstance(row["prompt"], str):
            ids = self.tokenizer(self._ended(row["prompt"] + row["completion"]))["input_ids"]
        else:
            ids = self._chat(row["prompt"] + row["completion"])["input_ids"]
        if self.loss_on == "all":
            return ids, [1] * len(ids)
        # Tokens may merge across the border: the completion starts where the two first differ.
        same = takewhile(lambda pair: pair[0] == pair[1], zip(prompt_ids, ids, strict=False))
        start = sum(1 for _ in same)
        return ids, [0] * start + [1] * (len(ids) - start)

    def _text(self, row: dict[str, Any]) -> tuple[list[int], Sequence[int]]:
        ids = self.tokenizer(self._ended(row["text"]))["input_ids"]
        return ids, [1] * len(ids)

    def _prompt_ids(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            return list(self.tokenizer(prompt)["input_ids"])
        return list(self._chat(prompt, add_generation_prompt=True)["input_ids"])

    def _chat(self, messages: list[dict[str, Any]], **options: Any) -> Any:
        return show_chat(self.tokenizer, messages, chat_template=self.template, **options)

    def _ended(self, text: str) -> str:
        end = self.tokenizer.eos_token or ""
        return text if text.endswith(end) else text + end


def _features() -> "Features":
    """Types of what a row becomes; the library would take them from the first rows alone."""
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
