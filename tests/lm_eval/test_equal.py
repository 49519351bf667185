"""lm-eval's command line and ours get the same from the same items, one by one."""

import json
import subprocess
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.harness.lm_eval_files import command, samples, write_task
from lamina.errors import DataError
from lamina.measure.tasks.files import ItemResult, TaskResult
from lamina.measure.tasks.items import LibraryTask, read_tasks
from lamina.measure.tasks.scoring import evaluate_tasks
from tests.conftest import REFERENCE, ROOT, environment
from tests.measure.tasks.conftest import SETTINGS, choice_rows, pairs, write_file

pytestmark = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm-eval is not installed: make install-lm-eval"
)

SHOTS = 2


def odd_rows() -> list[dict[str, Any]]:
    """What tokenizers and joins trip over: spaces, lines, an empty context, other scripts."""
    return [
        {"context": "a ", "choices": ["b", " b", "b "], "label": 0},
        {"context": "", "choices": ["copy abc", "reverse"], "label": 1},
        {"context": "line\n", "choices": ["Größe 数", "数", "x"], "label": 0},
        {"context": "ends with spaces   ", "choices": ["no", "yes", "yes, it does"], "label": 2},
        {"context": "?", "choices": ["same start one", "same start two"], "label": 1},
        {"context": " ".join(["long"] * 40), "choices": ["a", "b", "c", "d", "e"], "label": 4},
    ]


def real_rows() -> list[dict[str, Any]]:
    """Published items."""
    paths = sorted((ROOT / "tests" / "data" / "tasks").glob("*.jsonl"))
    rows = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return [{name: row[name] for name in ("context", "choices", "label")} for row in rows]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files, and a task of lm-eval of each, with and without solved items."""
    folder = tmp_path_factory.mktemp("equal")
    asked = pairs(20)
    texts = [" ".join(f"{q} {a}" for q, a in asked[n : n + 5]) for n in range(0, 20, 5)]
    rows: dict[str, list[dict[str, Any]]] = {
        "choices": [*choice_rows(12), *odd_rows(), *real_rows()],
        "target": [{"context": q, "target": a} for q, a in asked],
        "generation": [{"question": q, "answer": a} for q, a in asked],
        "text": [{"text": text} for text in texts],
    }
    for form, own in rows.items():
        for shots in (0, SHOTS) if form in ("choices", "generation") else (0,):
            name = f"{form}{shots}"
            write_file(folder / f"{name}.jsonl", own)
            write_task(folder, name, own, shots=shots, max_new_tokens=SETTINGS.max_new_tokens)
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes the model."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    base = AutoModelForCausalLM.from_pretrained(REFERENCE, dtype=torch.float32)
    get_peft_model(base, config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(REFERENCE).save_pretrained(folder)
    return folder


Samples = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def theirs(folder: Path, adapter: Path) -> Any:
    """What lm-eval's command writes of each item, by task."""

    @cache
    def found(form: str) -> Samples:
        peft = f",peft={adapter}" if form == "adapter" else ""
        done = subprocess.run(
            command(f"{REFERENCE}{peft}", folder, folder / form, batch=4, dtype="float32"),
            cwd=folder,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return samples(folder / form)

    return found


def ours(
    folder: Path, model: Path, name: str, **changes: Any
) -> tuple[TaskResult, list[ItemResult]]:
    settings = replace(SETTINGS, few_shot=int(name[-1]), **changes)
    written: list[ItemResult] = []
    (result,) = evaluate_tasks(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        AutoTokenizer.from_pretrained(REFERENCE),
        read_tasks([str(folder / f"{name}.jsonl")], settings),
        settings,
        write=written.extend,
    ).values()
    return result, sorted(written, key=lambda item: item.id)


@pytest.mark.parametrize("form", ["model", "adapter"])
@pytest.mark.parametrize("name", ["choices0", f"choices{SHOTS}", "target0"])
def test_likelihoods_are_equal(
    folder: Path, adapter: Path, theirs: Any, form: str, name: str
) -> None:
    rows = theirs(form)[name]
    result, items = ours(folder, REFERENCE if form == "model" else adapter, name)
    assert len(items) == len(rows)
    for item, row in zip(items, rows, strict=True):
        pairs = [each[0] for each in row["resps"]]
        expected = [float(value) for value, _ in pairs]
        assert item.log_likelihoods == pytest.approx(expected, rel=1e-6, abs=1e-4)
        assert item.correct == bool(row["acc"])
        if "acc_norm" in row:
            assert item.correct_norm == bool(row["acc_norm"])
    mean = sum(row["acc"] for row in rows) / len(rows)
    assert result.metrics["acc"].value == pytest.approx(mean)


@pytest.mark.parametrize("form", ["model", "adapter"])
@pytest.mark.parametrize("name", ["generation0", f"generation{SHOTS}"])
def test_answers_are_equal(folder: Path, adapter: Path, theirs: Any, form: str, name: str) -> None:
    rows = theirs(form)[name]
    result, items = ours(folder, REFERENCE if form == "model" else adapter, name)
    assert [item.answer for item in items] == [row["resps"][0][0] for row in rows]
    right = [bool(row["exact_match"]) for row in rows]
    assert [item.correct for item in items] == right
    assert result.metrics["exact_match"].value == sum(right) / len(right)


@pytest.mark.parametrize("form", ["model", "adapter"])
def test_losses_are_equal(folder: Path, adapter: Path, theirs: Any, form: str) -> None:
    rows = theirs(form)["text0"]
    model = REFERENCE if form == "model" else adapter
    _, items = ours(folder, model, "text0", bos="always", window=2048)
    for item, row in zip(items, rows, strict=True):
        assert item.nll == pytest.approx(-float(row["resps"][0][0]), abs=1e-3)


@pytest.fixture
def local(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let lm-eval know only our tasks: its own take 20 seconds to list, and are downloaded."""
    import lm_eval.evaluator
    import lm_eval.tasks

    only = partial(lm_eval.tasks.TaskManager, include_path=str(folder), include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", only)
    monkeypatch.setattr(lm_eval.evaluator, "TaskManager", only)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("local")
def test_a_name_runs_in_the_library(folder: Path) -> None:
    names = ["choices0", f"generation{SHOTS}", "text0"]
    tasks = read_tasks(names, SETTINGS)
    assert tasks == [LibraryTask(name=name) for name in names]
    model = AutoModelForCausalLM.from_pretrained(REFERENCE, dtype=torch.float32)
    tokenizer, written = AutoTokenizer.from_pretrained(REFERENCE), list[ItemResult]()
    found = evaluate_tasks(model, tokenizer, tasks, SETTINGS, write=written.extend)
    assert [each.kind for each in found.values()] == ["choices", "generation", "text"]
    mine, items = ours(folder, REFERENCE, "choices0")
    named = [item for item in written if item.task == "choices0"]
    for item, other in zip(items, named, strict=True):
        assert item.id == other.id
        assert item.log_likelihoods == pytest.approx(other.log_likelihoods, rel=1e-6, abs=1e-4)
        assert (item.correct, item.correct_norm) == (other.correct, other.correct_norm)
    for name in ("acc", "acc_norm"):
        metric = found["choices0"].metrics[name]
        assert metric.value == pytest.approx(mine.metrics[name].value)
        assert metric.stderr == pytest.approx(mine.metrics[name].stderr)
    assert found[f"generation{SHOTS}"].protocol["few_shot"] == str(SHOTS)
    assert found[f"generation{SHOTS}"].protocol["scorer"] == "lm_eval"
    _, said = ours(folder, REFERENCE, f"generation{SHOTS}")
    answers = [item.answer for item in written if item.task == f"generation{SHOTS}"]
    assert [item.answer and item.answer.lstrip() for item in said] == answers


@pytest.mark.usefixtures("local")
def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(DataError) as raised:
        read_tasks(["choises0"], SETTINGS)
    assert str(raised.value) == (
        "evaluation.tasks=choises0: neither a file nor a task of lm-eval; did you mean choices0 or "
        "choices2?"
    )
