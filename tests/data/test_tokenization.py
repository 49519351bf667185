"""Token ids and labels: which tokens are kept and which are trained."""

from dataclasses import asdict, replace
from typing import Any

import pytest
from datasets import Dataset
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from lamina.data.accounting import TokenizedSplit, pack_fill
from lamina.data.byte_tokenizer import build_tokenizer
from lamina.data.splits import Split
from lamina.data.tokenization import IGNORED, Tokenization
from lamina.errors import ConfigError, DataError

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "sort up 21"},
    {"role": "assistant", "content": "12"},
    {"role": "user", "content": "copy AB"},
    {"role": "assistant", "content": "AB"},
]


def split(*rows: dict[str, Any]) -> Split:
    return Split(Dataset.from_list(list(rows)), "rows.jsonl")


def trained(rows: Split, loss_on: str = "auto", max_seq_length: int = 512) -> list[str]:
    tokenizer = build_tokenizer()
    done = Tokenization(tokenizer, loss_on, max_seq_length, rows)(rows)
    return [
        tokenizer.decode([i for i, label in zip(row["input_ids"], row["labels"], strict=True)
                          if label != IGNORED])
        for row in done.rows
    ]  # fmt: skip


def test_the_assistant_is_trained_with_its_end_of_turn() -> None:
    assert trained(split({"messages": TURNS})) == ["12<|im_end|>AB<|im_end|>"]


def test_all_tokens_can_be_trained() -> None:
    assert trained(split({"messages": TURNS}), "all") == [
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nsort up 21<|im_end|>\n"
        "<|im_start|>assistant\n12<|im_end|>\n<|im_start|>user\ncopy AB<|im_end|>\n"
        "<|im_start|>assistant\nAB<|im_end|>\n"
    ]


def test_the_completion_is_trained_with_its_end() -> None:
    rows = split({"prompt": "sort up 21 ", "completion": "12"})
    assert trained(rows) == ["12<|im_end|>"]
    assert trained(rows, "all") == ["sort up 21 12<|im_end|>"]


def test_a_completion_can_be_a_chat() -> None:
    rows = split({"prompt": TURNS[:2], "completion": TURNS[2:3]})
    assert trained(rows) == ["12<|im_end|>\n"]


def test_text_is_trained_as_a_whole() -> None:
    assert trained(split({"text": "sort up 21"})) == ["sort up 21<|im_end|>"]


def test_overflowing_tokens_are_cut_and_counted() -> None:
    rows = split({"text": "A" * 10}, {"text": "B" * 3})
    done = Tokenization(build_tokenizer(), "auto", 6, rows)(rows)
    assert [len(row["input_ids"]) for row in done.rows] == [6, 4]
    assert asdict(done.count) == {
        "rows": 2,
        "rows_skipped": 0,
        "rows_dropped": 0,
        "tokens_in": 15,
        "tokens": 10,
        "tokens_dropped": 5,
        "tokens_trained": 8,
    }


def test_a_row_without_a_trained_token_before_the_cut_is_dropped_and_counted() -> None:
    rows = split({"messages": TURNS}, {"messages": TURNS[1:3]})
    done = Tokenization(build_tokenizer(), "auto", 20, rows)(rows)
    assert (done.count.rows, done.count.rows_dropped) == (1, 1)


def test_no_trained_token_at_all_is_an_error() -> None:
    with pytest.raises(DataError, match="no trained token within max_seq_length=4; raise it"):
        trained(split({"messages": TURNS}), max_seq_length=4)


def test_without_a_usable_row_the_first_problem_is_named() -> None:
    tools = [{"name": "f", "parameters": {}}]
    rows = replace(split(*[{"messages": TURNS, "tools": tools}] * 3), skips=True)
    with pytest.raises(DataError, match=r", row 1: .* tools; .*; all 3 rows are unusable$"):
        trained(rows)


def test_the_prompt_ends_where_the_answer_begins() -> None:
    rows = split({"messages": TURNS[1:3]})
    tokenizer = build_tokenizer()
    text, ids, expected = Tokenization(tokenizer, "auto", 64, rows).prompt({"messages": TURNS[1:3]})
    assert (text, expected) == ("sort up 21", TURNS[2]["content"])
    assert tokenizer.decode(ids).endswith("sort up 21<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"frage": "1+1", "antwort": "2"}, "row 1: found columns frage, antwort; expected"),
        ({"text": ""}, "row 2: column 'text' is empty or missing"),
        ({"text": None}, "row 2: column 'text' is empty or missing"),
        ({"messages": []}, "row 2: column 'messages' is empty or missing"),
        ({"messages": TURNS[:2]}, "row 2: no message in column 'messages' has the role assistant"),
        (
            {"messages": [{"role": "assistant", "content": None}]},
            "row 2: message 1 is .* expected an object with",
        ),
        ({"messages": [{"role": "assistant"}]}, "row 2: message 1 is .* expected an object with"),
        ({"prompt": "a", "completion": None}, "row 2: column 'completion' is empty or missing"),
    ],
)
def test_a_bad_row_is_named_with_what_was_found(row: dict[str, Any], message: str) -> None:
    good = {"text": "a", "messages": TURNS, "prompt": "a", "completion": "b", "question": "q"}
    first = {key: good.get(key, value) for key, value in row.items()}
    rows = Split(Dataset.from_list([first, row]), "rows.jsonl")
    if "role" in message or "object" in message:
        rows = Split(Dataset.from_list([row, row]), "rows.jsonl")
        message = message.replace("row 2", "row 1")
    with pytest.raises(DataError, match=rf"^rows.jsonl, {message}"):
        trained(rows)


def test_loss_on_the_assistant_needs_messages() -> None:
    with pytest.raises(ConfigError, match=r"data\.loss_on=assistant, but rows\.jsonl has text"):
        trained(split({"text": "a"}), "assistant")


def test_a_template_that_never_ends_an_answer_is_refused_with_a_way_out() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    rows = split({"messages": TURNS})
    with pytest.raises(
        ConfigError, match=r"ends an answer would not be trained.*or set data\.chat"
    ):
        Tokenization(tokenizer, "auto", 64, rows)(rows)
    assert Tokenization(tokenizer, "all", 64, rows)(rows).count.rows == 1


def test_a_tokenizer_without_a_template_is_refused() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="has no chat template"):
        Tokenization(tokenizer, "auto", 64, split({"messages": TURNS}))


def chat(answer: int) -> dict[str, Any]:
    user = {"role": "user", "content": "copy A"}
    return {"messages": [user, {"role": "assistant", "content": "A" * answer}]}


def tokenized(max_seq_length: int) -> TokenizedSplit:
    rows = split(*[chat(answer) for answer in (10, 20, 30, 40, 400)])
    return Tokenization(build_tokenizer(), "auto", max_seq_length, rows)(rows)


def test_dropping_too_many_tokens_is_refused_with_lengths_that_drop_fewer() -> None:
    with pytest.raises(DataError) as refused:
        tokenized(64).check_truncation(0.01, 64)
    assert str(refused.value) == (
        "rows.jsonl: 61.8% of the tokens (349 of 565) lie beyond max_seq_length=64, but "
        "data.max_dropped=0.01: max_seq_length=413 drops none, 408 no more than allowed; or "
        "raise data.max_dropped"
    )
    for length, allowed in ((413, 0.0), (408, 0.01), (64, 0.7)):
        tokenized(length).check_truncation(allowed, length)
    for length, allowed in ((412, 0.0), (407, 0.01)):
        with pytest.raises(DataError, match="drops none"):
            tokenized(length).check_truncation(allowed, length)


def test_a_row_whose_answer_is_cut_off_is_dropped_as_a_whole() -> None:
    rows = split({"prompt": "A" * 90, "completion": "B" * 9}, {"prompt": "A", "completion": "B"})
    done = Tokenization(build_tokenizer(), "auto", 90, rows)(rows)
    assert (done.count.tokens_in, done.count.tokens_dropped) == (103, 100)
    with pytest.raises(DataError, match=r"max_seq_length=100 drops none, 99 no more than allowed"):
        done.check_truncation(0.01, 90)


def test_skipped_rows_are_counted_and_listed() -> None:
    rows = split({"text": "a"}, {"text": ""}, {"text": "b"}, {"text": None})
    done = Tokenization(build_tokenizer(), "auto", 64, rows)(replace(rows, skips=True))
    assert (done.count.rows, done.count.rows_skipped, done.count.rows_dropped) == (2, 2, 0)
    problem = "column 'text' is empty or missing (found nothing); expected text"
    assert done.skipped == (
        {"origin": "rows.jsonl", "row": 2, "problem": problem},
        {"origin": "rows.jsonl", "row": 4, "problem": problem},
    )


def test_messages_that_the_template_refuses_are_a_bad_row() -> None:
    tokenizer = build_tokenizer()
    refuse = (
        "{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('no system') }}{%- endif -%}"
    )
    tokenizer.chat_template = refuse + tokenizer.chat_template
    rows = split(chat(2), {"messages": TURNS})
    message = r"^rows\.jsonl, row 2: the model's chat template refuses these messages \(no sys"
    with pytest.raises(DataError, match=message):
        Tokenization(tokenizer, "auto", 64, rows)(rows)
    done = Tokenization(tokenizer, "auto", 64, rows)(replace(rows, skips=True))
    assert (done.count.rows, done.count.rows_skipped) == (1, 1)


def test_a_row_that_starts_with_the_assistant_has_no_prompt() -> None:
    rows = split({"messages": TURNS[2:]}, chat(2))
    tokenize = Tokenization(build_tokenizer(), "auto", 64, rows)
    assert tokenize(rows).count.rows == 2
    asked = [text for text, _, _ in replace(rows, skips=True).each(tokenize.prompt)]
    assert asked == ["copy A"]


def test_text_without_an_end_is_refused() -> None:
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    rows = split({"text": "a"}, {"text": "b"})
    with pytest.raises(ConfigError, match=r"^rows\.jsonl, row 1: the token that ends an answer"):
        Tokenization(tokenizer, "auto", 64, rows)(rows)


def test_a_row_whose_answer_does_not_end_is_refused() -> None:
    tokenizer = build_tokenizer()
    # TRL's check of the template sees a short answer, and that one ends as it should.
    shown = "message['content'] + ('<|im_end|>' if message['content'] | length < 8 else '')"
    template = tokenizer.chat_template.replace("message['content'] + '<|im_end|>' -", f"{shown} -")
    assert template != tokenizer.chat_template
    tokenizer.chat_template = template
    rows = split(chat(2), chat(9))
    with pytest.raises(ConfigError, match=r"^rows\.jsonl, row 2: the token that ends an answer"):
        Tokenization(tokenizer, "auto", 64, rows)(rows)


def bounded_tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer that adds a start and an end token to every text."""
    tokenizer = build_tokenizer()
    tokenizer.bos_token = "<|pad|>"
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in ("<|pad|>", "<|im_end|>")}
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|pad|> $A <|im_end|>", special_tokens=list(ids.items())
    )
    return tokenizer


@pytest.mark.parametrize(
    ("row", "text", "answer"),
    [
        ({"text": "copy A"}, "<|pad|>copy A<|im_end|>", "copy A<|im_end|>"),
        ({"text": "<|pad|>copy A<|im_end|>"}, "<|pad|>copy A<|im_end|>", "copy A<|im_end|>"),
        ({"prompt": "copy A", "completion": "A"}, "<|pad|>copy AA<|im_end|>", "A<|im_end|>"),
        (
            {"prompt": "<|pad|>copy A", "completion": "A<|im_end|>"},
            "<|pad|>copy AA<|im_end|>",
            "A<|im_end|>",
        ),
        (
            {"messages": TURNS[3:]},
            "<|im_start|>user\ncopy AB<|im_end|>\n<|im_start|>assistant\nAB<|im_end|>\n",
            "AB<|im_end|>",
        ),
    ],
)
@pytest.mark.parametrize("pad", ["<|pad|>", "<|im_end|>"])
def test_one_start_and_one_end_token_are_kept(
    row: dict[str, Any], text: str, answer: str, pad: str
) -> None:
    tokenizer = bounded_tokenizer()
    tokenizer.pad_token = pad
    tokenize = Tokenization(tokenizer, "auto", 64, split(row))
    done = tokenize(split(row)).rows[0]
    places = [i for i, label in enumerate(done["labels"]) if label != IGNORED and i > 0]
    assert tokenizer.decode(done["input_ids"]) == text
    assert tokenizer.decode([done["input_ids"][i] for i in places]) == answer
    if "prompt" in row:
        assert tokenizer.decode(tokenize.prompt(row)[1]) == "<|pad|>copy A"


def test_the_pack_fill_is_the_share_of_places_with_a_token() -> None:
    count = tokenized(413).count
    packs = {"input_ids": [[1] * 413, [1] * 152], "seq_lengths": [[413], [53, 43, 33, 23]]}
    assert pack_fill(Dataset.from_dict(packs), count, 413) == 565 / 826
    unpacked = Dataset.from_dict({"input_ids": [[1] * 565]})
    assert pack_fill(unpacked, count, 413) is None
    with pytest.raises(ConfigError, match=r"^trainer\.args leaves 413 of 565 tokens: leave"):
        pack_fill(unpacked.map(lambda row: {"input_ids": row["input_ids"][:413]}), count, 413)
