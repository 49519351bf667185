"""Items as token ids: how contexts, solved examples and answers are joined."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lamina.errors import ConfigError
from lamina.measure.tasks.settings import TaskSettings

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

JOIN = " "
"""Between a question and its answer; nothing where a chat template separates them."""

SEPARATOR = "\n\n"
"""Between solved examples, and what ends an answer without a chat template."""

LENGTHS = ("n_positions", "max_position_embeddings", "n_ctx")
"""Fields of config.json with a model's longest sequence, in tokens."""

DEFAULT_LENGTH = 2048
UNSET = 10**12
"""A tokenizer's model_max_length above this says nothing."""

Examples = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Prompts:
    """Writes prompts for one tokenizer, in the way of lm-eval's HFLM, whose scores are equal."""

    tokenizer: "PreTrainedTokenizerBase"
    settings: TaskSettings

    @property
    def join(self) -> str:
        """What stands between a question and its answer."""
        return "" if self.settings.template == "chat" else JOIN

    @property
    def stop(self) -> str:
        """The text that ends an answer, besides the model's own end; empty if none does."""
        return "" if self.settings.template == "chat" else SEPARATOR

    def question(self, text: str, examples: Examples) -> str:
        """Return a question after its examples, up to the answer."""
        if self.settings.template == "chat":
            return self._rendered(text, examples)
        solved = (f"{asked}{JOIN}{answer}{SEPARATOR}" for asked, answer in examples)
        return "".join(solved) + text

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the token ids of a context and of what follows it.

        A context's trailing spaces go to the continuation, since most tokenizers attach a space to
        the word that follows. An empty context becomes the token that begins texts.
        """
        if not context:
            ids = self._encode(continuation, special=False)
            first = self.first_token
            return ([first], ids) if ids[:1] != [first] else (ids[:1], ids[1:])
        bare = context.rstrip()
        continuation, context = context[len(bare) :] + continuation, bare
        if not context:
            return self.pair("", continuation)
        before = self.encode(context)
        return before, self.encode(context + continuation)[len(before) :]

    def encode(self, text: str) -> list[int]:
        """Return a text's token ids, with the token that begins texts as the settings say.

        A token that the tokenizer puts at the end is left out: the answer comes there.
        """
        bos = self.settings.bos
        if bos == "never" or text.startswith(self._first_text):
            return self._encode(text, special=False)
        ids = self._encode(text, special=True)
        ids = ids[:-1] if self._adds_end else ids
        if bos == "always" and ids[:1] != [self.first_token]:
            return [self.first_token, *ids]
        return ids

    @cached_property
    def _adds_end(self) -> bool:
        return self._encode("a", special=True)[-1:] == [self.tokenizer.eos_token_id]

    @cached_property
    def first_token(self) -> int:
        """The token that begins texts; of tokenizers without one, that which ends them."""
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if bos is None and eos is None:
            raise ConfigError(
                f"the tokenizer of {self.tokenizer.name_or_path} has neither a bos_token nor an "
                "eos_token, which an item without a context needs"
            )
        return int(eos if bos is None else bos)

    @cached_property
    def _first_text(self) -> tuple[str, ...]:
        known = self.tokenizer.bos_token_id is not None or self.tokenizer.eos_token_id is not None
        return (self.tokenizer.decode([self.first_token]),) if known else ()

    def _encode(self, text: str, *, special: bool) -> list[int]:
        found = self.tokenizer(text, add_special_tokens=special, verbose=False)
        return list(found["input_ids"])

    def _rendered(self, text: str, examples: Examples) -> str:
        messages = [
            {"role": role, "content": content}
            for pair in examples
            for role, content in zip(("user", "assistant"), pair, strict=True)
        ]
        messages.append({"role": "user", "content": text})
        thinking = self.settings.thinking
        options: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
        try:
            rendered = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **options
            )
        except Exception as error:  # a template can divide by zero, or ask for all memory
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(
                f"evaluation.task_settings.template=chat: {self.tokenizer.name_or_path} has no "
                f"chat template for questions and answers ({reason[:200]}); use none"
            ) from error
        return str(rendered)


def longest(config: "PretrainedConfig", tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return a model's longest sequence, in tokens."""
    text = config.get_text_config()
    found = next((value for name in LENGTHS if (value := getattr(text, name, None))), None)
    if found is None and tokenizer.model_max_length < UNSET:
        found = tokenizer.model_max_length
    return int(found or DEFAULT_LENGTH)
