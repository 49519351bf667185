"""data.answers=original: whose answers are trained, which are left out, and what is cached."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from lamina.data.answers.answered import ANSWERS_FILE, AnswerCount, Original
from lamina.data.answers.answering import _outcome, read_answers
from lamina.data.answers.settings import AnswerSettings
from lamina.data.feed import Feed, feed
from lamina.data.sources import Files
from lamina.errors import DataError
from lamina.measure.evaluate import answers
from lamina.measure.protocol import ModelRef
from tests.conftest import FOREIGN, REFERENCE

ORIGINAL = Original(
    ref=ModelRef(
        name=str(REFERENCE),
        revision=None,
        kept_layers=tuple(range(12)),
        dtype="float32",
        in_4bit=False,
    ),
    isolated=False,
)
SETTINGS = AnswerSettings(temperature=0.0, seed=1, max_new_tokens=24, batch_tokens=400)
QUESTIONS = ("copy ABC", "reverse ABCD", "sort up 4312", "recall AB,CD for C", "swap ABCDE")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(os.environ, "LAMINA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "answers"


def turn(content: str, role: str = "user") -> dict[str, str]:
    return {"role": role, "content": content}


def chat(question: str, *more: dict[str, str]) -> dict[str, Any]:
    return {"messages": [turn(question), turn("as given", "assistant"), *more]}


def fed(
    folder: Path,
    rows: list[Any],
    settings: AnswerSettings = SETTINGS,
    original: Original = ORIGINAL,
    length: int = 64,
    **more: Any,
) -> Feed:
    path, held = folder / "rows.jsonl", folder / "held.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held.write_text(json.dumps(rows[0]) + "\n")
    given = {**FOREIGN, "answers": "original", "answer_settings": settings, **more}
    data = Files(format="jsonl", train=str(path), **{**given, "eval": str(held)})
    tokenizer = AutoTokenizer.from_pretrained(REFERENCE)
    return feed(data, tokenizer, max_seq_length=length, num_prompts=1, original=original)


def trained(rows: Any, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [tokenizer.decode([i for i in row["labels"] if i >= 0]) for row in rows]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(REFERENCE)


@pytest.fixture(scope="module")
def alone(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The greedy answer to each question, generated without a batch."""
    model = AutoModelForCausalLM.from_pretrained(REFERENCE, dtype="float32")
    prompts = [
        tokenizer.apply_chat_template([turn(q)], add_generation_prompt=True)["input_ids"]
        for q in QUESTIONS
    ]
    return answers(model, tokenizer, prompts, 24)


def test_the_answers_of_the_original_are_trained_and_eval_rows_keep_theirs(
    tmp_path: Path, cache: Path, tokenizer: PreTrainedTokenizerBase, alone: list[str]
) -> None:
    found = fed(tmp_path, [chat(question) for question in QUESTIONS])
    end = tokenizer.eos_token
    assert trained(found.train.rows, tokenizer) == [f"{answer}{end}" for answer in alone]
    assert trained(found.eval.rows, tokenizer) == [f"as given{end}"]
    assert found.answers == AnswerCount(kept=5, cut=0, looping=0, empty=0, long=0)
    (path,) = cache.glob(f"*/{ANSWERS_FILE}")
    written = read_answers(path)
    assert [(each.question, each.answer) for each in written] == [
        *zip(QUESTIONS, alone, strict=True)
    ]
    assert [each.prompt for each in written] == [0, 1, 2, 3, 4]
    assert {each.outcome for each in written} == {"kept"}


def test_the_first_question_of_a_chat_is_answered_after_its_system_message(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, alone: list[str]
) -> None:
    row = chat(QUESTIONS[0], turn("and again"), turn("as given", "assistant"))
    system = {"messages": [turn("", "system"), *row["messages"]]}
    found = fed(tmp_path, [row, system])
    texts = [tokenizer.decode(row["input_ids"]) for row in found.train.rows]
    assert len(texts) == 2
    for text in texts:
        assert alone[0] in text
        assert "and again" not in text
        assert "as given" not in text


@pytest.mark.parametrize("as_turns", [True, False])
def test_completions_are_answered(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, alone: list[str], as_turns: bool
) -> None:
    rows: list[Any] = [
        {"prompt": [turn(q)], "completion": [turn("as given", "assistant")]} for q in QUESTIONS
    ]
    if not as_turns:
        rendered = [
            tokenizer.apply_chat_template([turn(q)], add_generation_prompt=True, tokenize=False)
            for q in QUESTIONS
        ]
        rows = [{"prompt": text, "completion": "as given"} for text in rendered]
    found = fed(tmp_path, rows)
    said = [text.rstrip("\n") for text in trained(found.train.rows, tokenizer)]
    assert said == [f"{answer}{tokenizer.eos_token}" for answer in alone]


def test_answers_that_are_cut_and_prompts_that_are_too_long_are_counted_and_left_out(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, alone: list[str]
) -> None:
    rows = [chat("copy ABC"), chat("reverse ABCD"), chat("copy " + 60 * "A")]
    found = fed(tmp_path, rows, replace(SETTINGS, max_new_tokens=4))
    assert found.answers == AnswerCount(kept=1, cut=1, looping=0, empty=0, long=1)
    assert trained(found.train.rows, tokenizer) == [f"{alone[0]}{tokenizer.eos_token}"]
    assert found.counts()["answers"]["cut"] == 1
    with pytest.raises(DataError) as refused:
        fed(tmp_path, rows, replace(SETTINGS, max_new_tokens=1))
    assert str(refused.value) == (
        f"data.answers=original: none of 3 answers of {REFERENCE} can be trained (0 kept, 2 cut, "
        "0 looping, 0 empty, 1 long): raise data.answer_settings.max_new_tokens, or use "
        "data.answers=given"
    )


def test_how_an_answer_ended() -> None:
    assert _outcome("a", [5, 0], [0]) == "kept"
    assert _outcome("a", [5, 6], [0]) == "cut"
    assert _outcome(" ", [9, 0], [0]) == "empty"
    assert _outcome("a", [*range(1, 9)] * 4, [0]) == "looping"
    assert _outcome("a", [*([*range(1, 9)] * 4), 0], [0]) == "looping"


def test_samples_depend_on_the_seed_alone(tmp_path: Path, cache: Path) -> None:
    rows = [chat(f"copy {letter}QZWX") for letter in "ABCDEFGHIJ"]

    def sampled(seed: int) -> list[str]:
        fed(tmp_path, rows, replace(SETTINGS, temperature=2.0, seed=seed, batch_tokens=90))
        (path,) = cache.glob(f"*/{ANSWERS_FILE}")
        found = [each.answer for each in read_answers(path)]
        shutil.rmtree(path.parent)
        return found

    first = sampled(1)
    assert sampled(1) == first
    assert sampled(2) != first


def test_bad_rows_stay_bad_and_a_row_that_asks_nothing_is_named(tmp_path: Path) -> None:
    rows = [chat("copy ABC"), {"messages": []}, {"messages": [turn("a", "assistant")]}]
    found = fed(tmp_path, rows, on_bad_row="skip")
    assert [(row["origin"], row["row"]) for row in found.train.skipped] == [
        (f"{tmp_path / 'rows.jsonl'} (answered by the original)", 2),
        (f"{tmp_path / 'rows.jsonl'} (answered by the original)", 3),
    ]
    assert found.train.count.rows == 1
    with pytest.raises(DataError, match=r"rows\.jsonl, row 2: the first message is the assistant"):
        fed(tmp_path, [rows[0], rows[2]])


def test_a_damaged_cache_is_made_again(tmp_path: Path, cache: Path) -> None:
    rows = [chat(question) for question in QUESTIONS[:2]]
    fed(tmp_path, rows)
    (path,) = cache.glob(f"*/{ANSWERS_FILE}")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    fed(tmp_path, rows)
    assert path.read_bytes() == whole
    assert {each.name for each in path.parent.iterdir()} == {
        ".lock", "answers.cached", ANSWERS_FILE,
    }  # fmt: skip


def test_another_process_answers_where_model_classes_are_patched(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, alone: list[str]
) -> None:
    rows = [chat(question) for question in QUESTIONS[:2]]
    found = fed(tmp_path, rows, original=replace(ORIGINAL, isolated=True))
    end = tokenizer.eos_token
    assert trained(found.train.rows, tokenizer) == [f"{answer}{end}" for answer in alone[:2]]
