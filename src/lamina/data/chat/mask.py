"""Which tokens of a chat are the assistant's, derived from a template that does not mark them.

The conversation before an answer is rendered with the words that begin an answer, and the
conversation up to the answer's end; the difference is what the model writes. Each row proves it:
both texts must be the beginning of the whole text, and the tokens must decode to the message and
one token that ends it.
"""

import re
from collections.abc import Sequence, Set
from typing import Any

from lamina.data.chat.template import REASONING, ChatTemplate, Messages, Tools
from lamina.errors import BadRowError
from lamina.measure.tasks.forward import shared_start

THINK = r"(?:[<\[]/?think(?:ing)?[>\]])*"
"""Marks around thinking, which may be empty."""

ADVICE = "set data.chat_template to a template that does, or data.loss_on=all"


def assistant_mask(
    chat: ChatTemplate, messages: Messages, tools: Tools, ends: Set[int]
) -> tuple[list[int], list[int]]:
    """Return a row's token ids, and 1 for each that the assistant writes, 0 for the others.

    `ends` are the ids of tokens that can end a message; an answer without one is not refused here.
    Raises BadRowError if the template writes an answer differently once messages follow it, or the
    tokens found are not the answer's.
    """
    text = chat.render(messages, tools)
    ids = chat.ids(text)
    mask = [0] * len(ids)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        start = _start(chat, messages[:index], tools, text, ids)
        stop = len(ids)
        if index + 1 < len(messages):
            stop = _stop(chat, messages[: index + 1], tools, ids, ends)
        while stop > start and ids[stop - 1] not in ends and _is_blank(chat, ids[stop - 1]):
            stop -= 1
        written = ids[start:stop]
        if written and written[-1] in ends:
            written = written[:-1]
        _prove(chat, message, index + 1, written)
        mask[start:stop] = [1] * (stop - start)
    return ids, mask


def _start(
    chat: ChatTemplate, before: Messages, tools: Tools, text: str, ids: Sequence[int]
) -> int:
    """Return the place of an answer's first token, after the messages before it."""
    number = len(before) + 1
    if not before:
        raise BadRowError(
            f"message 1 is the assistant's, and {chat} does not mark what the assistant writes; "
            "expected another message before it"
        )
    prompt = chat.render(before, tools, prompt=True)
    if text.startswith(prompt):
        return shared_start([chat.ids(prompt), ids])
    if text.startswith(chat.render(before, tools)):
        raise BadRowError(
            f"{chat} does not begin message {number} as it prompts for an answer; {ADVICE}"
        )
    raise BadRowError(_rewritten(chat, f"the messages before message {number}"))


def _stop(
    chat: ChatTemplate, messages: Messages, tools: Tools, ids: Sequence[int], ends: Set[int]
) -> int:
    """Return the place after the tokens of the last of some messages, which others follow.

    Its end may be another token than at the end of a conversation, such as OLMo's.
    """
    alone = chat.ids(chat.render(messages, tools))
    shared = shared_start([alone, ids])
    rest = alone[shared:]
    if not all(token in ends or _is_blank(chat, token) for token in rest):
        raise BadRowError(_rewritten(chat, f"message {len(messages)}"))
    ended_otherwise = rest and rest[0] in ends and shared < len(ids) and ids[shared] in ends
    return shared + 1 if ended_otherwise else shared


def _prove(chat: ChatTemplate, message: dict[str, Any], number: int, written: list[int]) -> None:
    """Refuse tokens that are not a message's thinking, content and tool calls."""
    found = _squeezed(chat.tokenizer.decode(written, clean_up_tokenization_spaces=False))
    content = message["content"]
    if _is_said(found, message, content):
        return
    # A tokenizer may normalize letters: what it makes of the content alone is as good.
    if not _is_said(found, message, chat.tokenizer.decode(chat.ids(content))):
        raise BadRowError(
            f"{chat} does not write message {number} as its text alone ({found[:40]!r}); {ADVICE}"
        )


def _is_said(found: str, message: dict[str, Any], content: str) -> bool:
    """Whether a text without white space is a message's; how calls look is the template's own."""
    said = _squeezed(content)
    calls = [_squeezed(call["function"]["name"]) for call in message.get("tool_calls", ())]
    if calls:
        return said in found and all(name in found for name in calls)
    thought = _squeezed(next(filter(None, map(message.get, REASONING)), ""))
    begin = f"{THINK}{re.escape(thought)}{THINK}"
    return found.endswith(said) and bool(re.fullmatch(begin, found.removesuffix(said)))


def _is_blank(chat: ChatTemplate, token: int) -> bool:
    return not chat.tokenizer.decode([token]).strip()


def _squeezed(text: str) -> str:
    """Return a text without white space: templates trim it, tokenizers move it."""
    return "".join(text.split())


def _rewritten(chat: ChatTemplate, what: str) -> str:
    return f"{chat} does not leave {what} as before once others follow; {ADVICE}"
