"""Rows to token ids and labels: which tokens are read, which are trained, which are lost.

Three forms of rows, told apart by their columns: `messages` (a chat), `prompt` with `completion`,
and `text`. A label is the token's id where it is trained and -100 where it is not.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from lamina.errors import ConfigError, DataError
from lamina.heal.data import Split
from lamina.heal.rows import FORMS, form_of, problem_of

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of a token that is not trained."""


@dataclass(frozen=True)
class TokenCount:
    """What became of a split's tokens."""

    rows: int
    rows_dropped: int
    """Rows with no trained token within the first max_seq_length tokens."""
    tokens: int
    tokens_dropped: int
    """Tokens beyond max_seq_length, or in dropped rows."""
    tokens_trained: int


@dataclass(frozen=True)
class TokenizedSplit:
    """A split as token ids: a data set with the columns input_ids and labels."""

    rows: "Dataset"
    count: TokenCount

    def as_dict(self) -> dict[str, int]:
        """Return the counts for result.json."""
        return asdict(self.count)


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
        default = form_of(split)
        self.columns = FORMS[default]
        self.loss_on = default if loss_on == "auto" else loss_on
        if self.loss_on not in ("all", default):
            raise ConfigError(
                f"data.loss_on={loss_on}, but {split.origin} has {' and '.join(self.columns)}: "
                f"give auto, all{'' if default == 'all' else ' or ' + default}"
            )
        self.template = self._training_template() if default == "assistant" else None

    def __call__(self, split: Split) -> TokenizedSplit:
        """Tokenize every row of a split.

        Raises:
            DataError: A row cannot be used, or none has a trained token.
        """
        form = form_of(split)
        if FORMS[form] != self.columns:
            raise DataError(
                f"{split.origin} has {' and '.join(FORMS[form])}, the training rows "
                f"{' and '.join(self.columns)}: give both the same columns"
            )
        tokenized = split.rows.map(
            self.row,
            with_indices=True,
            fn_kwargs={"origin": split.origin},
            remove_columns=split.rows.column_names,
            desc=f"tokenizing {split.origin}",
        )
        usable = [index for index, trained in enumerate(tokenized["trained"]) if trained]
        kept = tokenized if len(usable) == len(tokenized) else tokenized.select(usable)
        if len(kept) == 0:
            raise DataError(
                f"{split.origin}: no trained token within max_seq_length={self.max_seq_length}"
            )
        total = sum(tokenized["length"])
        left = sum(min(length, self.max_seq_length) for length in kept["length"])
        count = TokenCount(
            rows=len(kept),
            rows_dropped=len(tokenized) - len(kept),
            tokens=left,
            tokens_dropped=total - left,
            tokens_trained=sum(kept["trained"]),
        )
        return TokenizedSplit(kept.select_columns(["input_ids", "labels"]), count)

    def prompt(self, row: dict[str, Any]) -> tuple[str, list[int]]:
        """Return what a row asks, as text for people and as all tokens up to the answer."""
        if "messages" in self.columns:
            turns = list(takewhile(lambda m: m["role"] != "assistant", row["messages"]))
            text = turns[-1]["content"] if turns else ""
            return text, list(self._chat(turns, add_generation_prompt=True)["input_ids"])
        if "prompt" in self.columns:
            prompt = row["prompt"]
            text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
            return text, self._prompt_ids(prompt)
        ids = self.tokenizer(row["text"])["input_ids"][: self.max_seq_length]
        ids = list(ids[: max(1, len(ids) // 2)])
        return self.tokenizer.decode(ids), ids

    def row(self, row: dict[str, Any], index: int, origin: str) -> dict[str, Any]:
        """Tokenize one row.

        Args:
            row: Its columns.
            index: Its 0-based number, for an error.
            origin: The name by which an error speaks of the rows.

        Raises:
            DataError: The row cannot be used.
        """
        if problem := problem_of(row, self.columns):
            raise DataError(f"{origin}, row {index + 1}: {problem}")
        encode: dict[str, Callable[[dict[str, Any]], tuple[list[int], Sequence[int]]]] = {
            "messages": self._messages,
            "prompt": self._completion,
            "text": self._text,
        }
        ids, mask = encode[self.columns[0]](row)
        labels = [i if kept else IGNORED for i, kept in zip(ids, mask, strict=True)]
        labels = labels[: self.max_seq_length]
        # A first token is never predicted, so it is not a trained one.
        trained = sum(label != IGNORED for label in labels[1:])
        ids_kept = ids[: self.max_seq_length]
        return {"input_ids": ids_kept, "labels": labels, "trained": trained, "length": len(ids)}

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
        return self.tokenizer.apply_chat_template(
            messages, chat_template=self.template, tokenize=True, return_dict=True, **options
        )

    def _ended(self, text: str) -> str:
        end = self.tokenizer.eos_token or ""
        return text if text.endswith(end) else text + end

    def _training_template(self) -> str | None:
        """Return a chat template that marks the assistant's tokens, or None for the model's own."""
        from trl.chat_template_utils import (
            get_training_chat_template,
            has_generation_markers,
            is_chat_template_stop_token_trained,
        )

        if self.tokenizer.chat_template is None:
            raise ConfigError(
                f"the tokenizer of {self.tokenizer.name_or_path} has no chat template, which rows "
                "with messages need: give rows with text, or a model that was tuned for chat"
            )
        if self.loss_on == "all":
            return None
        template = None
        advice = "choose data.loss_on=all to train on every token"
        if not has_generation_markers(self.tokenizer.chat_template):
            try:
                template = get_training_chat_template(self.tokenizer)
            except ValueError as error:
                raise ConfigError(
                    "data.loss_on=assistant: this model's chat template does not mark the "
                    f"assistant's tokens; {advice}"
                ) from error
        if not is_chat_template_stop_token_trained(self.tokenizer, chat_template=template):
            raise ConfigError(
                "data.loss_on=assistant: this model's chat template leaves the end-of-turn token "
                f"untrained, so the model would not learn to stop; {advice}"
            )
        return template
