"""Which chat template is used, and what it must not lose."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lamina.data.byte_tokenizer import CHAT_TEMPLATE, build_tokenizer
from lamina.data.chat.template import choose_template, own_template
from lamina.data.splits import Split
from lamina.data.tokenization import Tokenization
from lamina.errors import ConfigError, DataError
from tests.data.chat.test_messages import CALL, TOOL

USER = {"role": "user", "content": "sort up 21"}
ANSWER = {"role": "assistant", "content": "12"}


def tokenizer_with(template: Any) -> PreTrainedTokenizerBase:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    tokenizer.name_or_path = "small"
    return tokenizer


def refused_choice(tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    with pytest.raises(ConfigError) as refused:
        choose_template(tokenizer, name)
    return str(refused.value)


def test_a_named_template_a_file_or_chatml_replaces_the_tokenizers_own(tmp_path: Path) -> None:
    named = {"default": "a", "tool_use": "b"}
    own = tmp_path / "own.jinja"
    own.write_text("{{ messages[0].content }}")
    assert choose_template(tokenizer_with(named), None).chat_template == named
    assert choose_template(tokenizer_with(named), "tool_use").chat_template == "b"
    assert choose_template(tokenizer_with("a"), "chatml").chat_template == CHAT_TEMPLATE
    chosen = choose_template(tokenizer_with(named), str(own))
    chosen.save_pretrained(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template
    assert chosen.chat_template == saved == "{{ messages[0].content }}"


def test_a_template_that_is_not_there_is_refused(tmp_path: Path) -> None:
    key = "data.chat_template="
    named = tokenizer_with({"default": "a", "tool_use": "b"})
    assert refused_choice(named, "tools") == (
        f"{key}tools: no such file or template; use default, tool_use, chatml or a .jinja or .j2 "
        "file"
    )
    (tmp_path / ".env").write_text("HF_TOKEN=hf_secret")
    assert refused_choice(named, str(tmp_path / ".env")).endswith("chatml or a .jinja or .j2 file")
    broken = tmp_path / "broken.jinja"
    broken.write_text("\n{% for %}")
    assert refused_choice(named, str(broken)).startswith(
        f"{key}{broken}, line 2: not a jinja template ("
    )
    broken.write_bytes(b"\xff")
    assert refused_choice(named, str(broken)) == (
        f"{key}{broken}: not UTF-8; use a jinja file in UTF-8"
    )


def test_chatml_needs_its_tokens() -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()), eos_token="</s>", name_or_path="small"
    )
    assert refused_choice(tokenizer, "chatml") == (
        "data.chat_template=chatml: the tokenizer of small has no token <|im_start|> or "
        "<|im_end|>; use a jinja file that ends turns with </s>"
    )


def test_of_several_named_templates_the_default_is_used() -> None:
    tokenizer = tokenizer_with({"tool_use": "a", "default": CHAT_TEMPLATE})
    assert own_template(tokenizer) == CHAT_TEMPLATE
    rows = Split(Dataset.from_list([{"messages": [USER, ANSWER], "tools": None}]), "rows")
    assert Tokenization(tokenizer, "auto", 64, rows)(rows).count.tokens_trained == 3
    with pytest.raises(ConfigError) as refused:
        own_template(tokenizer_with({"tool_use": "a", "rag": "b"}))
    assert str(refused.value) == (
        "the tokenizer of small has the chat templates tool_use, rag and no default: set "
        "data.chat_template to one of them"
    )


@pytest.mark.parametrize("loss_on", ["assistant", "all"])
@pytest.mark.parametrize(
    ("row", "lost"),
    [
        ({"messages": [USER, ANSWER], "tools": [TOOL]}, "the row's tools"),
        (
            {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
            "tool_calls of message 2",
        ),
        (
            {"messages": [USER, ANSWER, {"role": "tool", "content": "12!"}, ANSWER]},
            "message 3, role tool",
        ),
        (
            {"messages": [{"role": "system", "content": "Be brief."}, USER, ANSWER]},
            "message 1, role system",
        ),
    ],
)
def test_a_template_that_loses_a_part_of_a_row_is_refused(
    row: dict[str, Any], lost: str, loss_on: str
) -> None:
    start = "{%- for message in messages -%}"
    known = f"{start}{{%- if message['role'] in ('user', 'assistant') -%}}"
    template = CHAT_TEMPLATE.replace(start, known).replace(
        "{%- endfor -%}", "{%- endif -%}{%- endfor -%}"
    )
    rows = Split(Dataset.from_list([row]), "rows")
    with pytest.raises(DataError) as refused:
        Tokenization(tokenizer_with(template), loss_on, 64, rows)(rows)
    assert str(refused.value) == (
        f"rows, row 1: the chat template of small does not write {lost}; set data.chat_template "
        "to a template that does"
    )


CONTENT = "message['content'] + '<|im_end|>' -"
CALLS = (
    "(message['tool_calls'][0]['function']['name'] if message['tool_calls'] else '') + '<|im_end|>'"
)
THOUGHT = "<think>\nfirst 1\n</think>\n\n12"


@pytest.mark.parametrize(
    ("written", "message", "lost"),
    [
        (
            "message['content'].split('</think>')[-1] + '<|im_end|>' -",
            {"content": THOUGHT},
            "the thinking of message 2",
        ),
        (
            "('\\n' if message['reasoning_content'] else '') + message['content'] + '<|im_end|>' -",
            {"content": "12", "reasoning_content": "first 1"},
            "reasoning_content of message 2",
        ),
        (f"{CALLS} -", {"content": "", "tool_calls": [CALL, CALL]}, "tool_calls of message 2"),
        (
            f"{CALLS} -",
            {"content": "I sort.", "tool_calls": [CALL]},
            "the text beside the calls of message 2",
        ),
    ],
)
def test_a_template_that_loses_a_part_of_an_answer_is_refused(
    written: str, message: dict[str, Any], lost: str
) -> None:
    assert CONTENT in CHAT_TEMPLATE
    tokenizer = tokenizer_with(CHAT_TEMPLATE.replace(CONTENT, written))
    rows = Split(Dataset.from_list([{"messages": [USER, {**ANSWER, **message}]}]), "rows")
    with pytest.raises(DataError, match=f"small does not write {lost}; "):
        Tokenization(tokenizer, "assistant", 64, rows)(rows)


def test_a_message_is_lost_though_an_answer_repeats_it() -> None:
    tool = {"role": "tool", "content": "12:30"}
    repeated = {"role": "assistant", "content": "It is 12:30."}
    template = CHAT_TEMPLATE.replace(
        "{%- for message in messages -%}",
        "{%- for message in messages if message['role'] != 'tool' -%}",
    )
    rows = Split(Dataset.from_list([{"messages": [USER, ANSWER, tool, repeated]}]), "rows")
    with pytest.raises(DataError, match="small does not write message 3, role tool; "):
        Tokenization(tokenizer_with(template), "assistant", 64, rows)(rows)


def test_a_default_for_the_system_message_is_no_loss() -> None:
    default = "{%- if messages[0]['role'] != 'system' -%}Be brief.{%- endif -%}"
    messages = [{"role": "system", "content": "Be brief."}, USER, ANSWER]
    rows = Split(Dataset.from_list([{"messages": messages}]), "rows")
    made = Tokenization(tokenizer_with(default + CHAT_TEMPLATE), "assistant", 64, rows)(rows)
    assert made.count.tokens_trained == 3
