"""Which tokens are the assistant's where the template does not mark them."""

from typing import Any

import pytest
from datasets import Dataset
from tokenizers import normalizers
from transformers import PreTrainedTokenizerBase

from lamina.data.byte_tokenizer import CHAT_TEMPLATE, build_tokenizer
from lamina.data.splits import Split
from lamina.data.tokenization import IGNORED, Tokenization
from lamina.errors import DataError

PLAIN = CHAT_TEMPLATE.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
"""ChatML without marks."""

USER = {"role": "user", "content": "sort up 21"}


def chat(*answers: str, **fields: Any) -> list[dict[str, Any]]:
    said = [{"role": "assistant", "content": answer, **fields} for answer in answers]
    return [message for answer in said for message in (USER, answer)]


def trained(
    messages: list[dict[str, Any]],
    template: str = PLAIN,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> str:
    tokenizer = tokenizer or build_tokenizer()
    tokenizer.chat_template = template
    tokenizer.name_or_path = "small"
    split = Split(Dataset.from_list([{"messages": messages}]), "rows")
    row = Tokenization(tokenizer, "auto", 512, split)(split).rows[0]
    pairs = zip(row["input_ids"], row["labels"], strict=True)
    return str(tokenizer.decode([token for token, label in pairs if label != IGNORED]))


def refusal(messages: list[dict[str, Any]], template: str) -> str:
    with pytest.raises(DataError) as refused:
        trained(messages, template)
    return str(refused.value).removeprefix("rows, row 1: ")


def test_the_marks_of_a_template_make_no_difference() -> None:
    rows = [*chat("12", "21"), {"role": "system", "content": "Stop."}, USER, *chat("1")[1:]]
    assert trained(rows) == trained(rows, CHAT_TEMPLATE) == "12<|im_end|>21<|im_end|>1<|im_end|>"


def test_two_answers_in_a_row_are_both_trained() -> None:
    assert trained([*chat("12"), *chat("21")[1:]]) == "12<|im_end|>21<|im_end|>"


def test_an_answer_may_begin_with_a_token_that_the_prompt_shares() -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["\n\n"])
    assert trained(chat("\n12"), tokenizer=tokenizer) == "\n\n12<|im_end|>"


def test_a_tokenizer_may_normalize_the_text() -> None:
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    assert trained(chat("e\u0301"), tokenizer=tokenizer) == "\u00e9<|im_end|>"


def test_thinking_is_trained_where_the_template_writes_it() -> None:
    content = "{{- message['content'] + '<|im_end|>' -}}{{- '\\n' -}}"
    think = "{{- '<think>' + message['thinking'] + '</think>' if message['thinking'] -}}"
    assert content in PLAIN
    template = PLAIN.replace(content, think + content)
    assert trained(chat("12", thinking="1, 2"), template) == "<think>1, 2</think>12<|im_end|>"
    assert refusal(chat("12", thinking="1, 2"), PLAIN) == (
        "the chat template of small does not write thinking of message 2; set data.chat_template "
        "to a template that does"
    )


def test_a_chat_that_the_assistant_begins_is_refused() -> None:
    assert refusal(chat("12")[1:], PLAIN) == (
        "message 1 is the assistant's, and the chat template of small does not mark what the "
        "assistant writes; expected another message before it"
    )


WAYS_OUT = "set data.chat_template to a template that does, or data.loss_on=all"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "{%- if add_generation_prompt -%}",
            "{%- if false -%}",
            "does not write message 2 as its text alone ('<|im_start|>assistant12')",
        ),
        (
            "'<|im_start|>assistant\\n'",
            "'<|im_start|>assistant\\n<think>'",
            "does not begin message 2 as it prompts for an answer",
        ),
        (
            "message['content'] + '<|im_end|>' -",
            "message['content'] | replace('1', '') + '<|im_end|>' -",
            "does not write message 2 as its text alone ('2')",
        ),
        (
            "message['content'] + '<|im_end|>' -",
            "(message['content'] if loop.last else 'X') + '<|im_end|>' -",
            "does not leave message 2 as before once others follow",
        ),
        (
            "message['content'] + '<|im_end|>\\n' -",
            "(message['content'] if loop.revindex < 3 else 'X') + '<|im_end|>\\n' -",
            "does not leave the messages before message 2 as before once others follow",
        ),
    ],
)
def test_a_template_that_does_not_show_what_the_assistant_writes_is_refused(
    old: str, new: str, message: str
) -> None:
    assert old in PLAIN
    template = PLAIN.replace(old, new)
    found = refusal(chat("12", "21"), template)
    assert found == f"the chat template of small {message}; {WAYS_OUT}"
