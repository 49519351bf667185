"""The chat template that renders a row's messages: which one it is, and what it must not lose."""

import re
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.data.byte_tokenizer import CHAT_TEMPLATE, END, START
from lamina.errors import BadRowError, ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[dict[str, Any]]
Tools = list[dict[str, Any]] | None

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Fields in which a message has the thinking that precedes its content."""

THOUGHT = re.compile(r"<think>\s*(\S.*?)\s*</think>", re.S)
"""Thinking in an answer's content."""

MARK = "laminaMark"
"""A word that no row and no template has."""

ADVICE = "set data.chat_template to a template that does"


@dataclass(frozen=True)
class ChatTemplate:
    """One jinja text with the tokenizer that it writes for."""

    tokenizer: "PreTrainedTokenizerBase"
    text: str

    def __str__(self) -> str:
        """Return its name in errors."""
        return f"the chat template of {self.tokenizer.name_or_path}"

    def encode(self, messages: Messages, **options: Any) -> Any:
        """Return `apply_chat_template`'s dictionary with input_ids; `options` are its own.

        Raises BadRowError if the template refuses the messages: some require alternating turns,
        some have no system role.
        """
        return self._apply(messages, tokenize=True, return_dict=True, **options)

    def render(self, messages: Messages, tools: Tools, *, prompt: bool = False) -> str:
        """Return the messages as text, with `prompt` followed by what begins the next answer."""
        text = self._apply(messages, tools=tools, add_generation_prompt=prompt, tokenize=False)
        return str(text)

    def ids(self, text: str) -> list[int]:
        """Tokenize rendered text; the template has written all special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def refuse_lost(self, messages: Messages, tools: Tools, *, reasoning: bool) -> None:
        """Refuse a row of which the template leaves something out without a word.

        Raises BadRowError if it does not write the tools, a tool call, the text beside one, a
        message of the system, the developer or a tool or, with `reasoning`, the thinking before an
        answer.
        """
        if tools and self._is_same(self.render(messages, tools), messages):
            raise BadRowError(f"{self} does not write the row's tools; {ADVICE}")
        for number, message in enumerate(messages, 1):
            before, after = messages[: number - 1], messages[number:]
            for part, marked in _marked(message, number, reasoning=reasoning):
                if not self._writes_mark([*before, marked, *after], tools):
                    raise BadRowError(f"{self} does not write {part}; {ADVICE}")

    def _is_same(self, text: str, messages: Messages) -> bool:
        try:
            return self.render(messages, None) == text
        except BadRowError:
            return False

    def _writes_mark(self, messages: Messages, tools: Tools) -> bool:
        try:
            return MARK in self.render(messages, tools)
        except BadRowError:  # it reads that part
            return True

    def _apply(self, messages: Messages, **options: Any) -> Any:
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), chat_template=self.text, **options
            )
        except Exception as error:  # a template can divide by zero, or ask for all memory
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BadRowError(
                f"the model's chat template refuses these messages ({reason}); expected roles and "
                "an order that it supports"
            ) from error


def _marked(
    message: dict[str, Any], number: int, *, reasoning: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each part of a message that templates lose, and the message with `MARK` in its place.

    A template may write a default in the place of what is left out, or other blanks, so a row
    without the part would not show that it is lost.
    """
    content, calls = message["content"], message.get("tool_calls") or ()
    if message["role"] not in ("user", "assistant") and content.strip():
        yield f"message {number}, role {message['role']}", {**message, "content": MARK}
    if calls and content.strip():
        yield f"the text beside the calls of message {number}", {**message, "content": MARK}
    for place, call in enumerate(calls):
        named = {**call, "function": {**call["function"], "name": MARK}}
        others = [*calls[:place], named, *calls[place + 1 :]]
        yield f"tool_calls of message {number}", {**message, "tool_calls": others}
    if reasoning:
        for key in filter(message.get, REASONING):
            yield f"{key} of message {number}", {**message, key: MARK}
        if message["role"] == "assistant" and (found := THOUGHT.search(content)):
            marked = content[: found.start(1)] + MARK + content[found.end(1) :]
            yield f"the thinking of message {number}", {**message, "content": marked}


def is_template(path: Path) -> bool:
    """Whether a path names a template: by its ending, since the file is copied into final/.

    Someone else's config could name a file with secrets.
    """
    return path.is_file() and path.suffix in (".jinja", ".j2")


def choose_template(
    tokenizer: "PreTrainedTokenizerBase", name: str | None
) -> "PreTrainedTokenizerBase":
    """Set a tokenizer's template to the one of data.chat_template, which is then saved with it.

    Raises ConfigError if there is no such template, or the tokenizer lacks its tokens.
    """
    if name is None:
        return tokenizer
    named = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
    if name in named:
        text = named[name]
    elif name == "chatml":
        missing = [token for token in (START, END) if token not in tokenizer.get_vocab()]
        if missing:
            raise ConfigError(
                f"data.chat_template=chatml: the tokenizer of {tokenizer.name_or_path} has no "
                f"token {' or '.join(missing)}; use a jinja file that ends turns with "
                f"{tokenizer.eos_token}"
            )
        text = CHAT_TEMPLATE
    else:
        text = _read(name, [*named, "chatml"])
    tokenizer.chat_template = text
    return tokenizer


def own_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return a tokenizer's template, of several named ones `default`; raises ConfigError."""
    found = tokenizer.chat_template
    if found is None:
        raise ConfigError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template, which rows with "
            "messages need: set data.chat_template, use rows with text, or a model tuned for chat"
        )
    if isinstance(found, dict):
        if "default" not in found:
            raise ConfigError(
                f"the tokenizer of {tokenizer.name_or_path} has the chat templates "
                f"{', '.join(found)} and no default: set data.chat_template to one of them"
            )
        return str(found["default"])
    return str(found)


def marked_template(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return a template that marks the assistant's tokens and their end, if there is one.

    It is the tokenizer's own, or TRL's training form of it, which TRL knows by the exact text.
    """
    from trl.chat_template_utils import (
        get_training_chat_template,
        has_generation_markers,
        is_chat_template_stop_token_trained,
    )

    own = own_template(tokenizer)
    text = own if has_generation_markers(own) else None
    if text is None:
        single = copy(tokenizer)
        single.chat_template = own
        try:
            text = get_training_chat_template(single)
        except Exception:  # TRL tries the template on a tool call
            return None
    trained = is_chat_template_stop_token_trained(tokenizer, chat_template=text)
    return text if trained else None


def _read(name: str, named: list[str]) -> str:
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import _compile_jinja_template

    key = f"data.chat_template={name}"
    path = Path(name).expanduser()
    if not is_template(path):
        known = ", ".join(named)
        raise ConfigError(f"{key}: no such file or template; use {known} or a .jinja or .j2 file")
    try:
        text = path.read_text(encoding="utf-8")
        _compile_jinja_template(text)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{key}: not UTF-8; use a jinja file in UTF-8") from error
    except TemplateSyntaxError as error:
        raise ConfigError(f"{key}, line {error.lineno}: not a jinja template ({error})") from error
    return text
