"""Tasks and speed: as a stage of a run and in `lamina evaluate`, with the same figures."""

import json
import random
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lamina.measure.tasks.files import (
    EvaluationResult,
    TaskResult,
    read_evaluation,
    read_items,
)
from tests.conftest import REFERENCE, SHORT, Finished, lamina, start, train

ROLES = ("original", "reduced", "final")


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Items of every kind, and settings for them."""
    folder, draw = tmp_path_factory.mktemp("tasks"), random.Random(7)
    sums = [(draw.randint(1, 9), draw.randint(1, 9)) for _ in range(30)]
    choices = [
        {"context": f"What is {a} + {b}?", "choices": [f"It is {a + b + k}." for k in range(3)],
         "label": 0}
        for a, b in sums[:24]
    ]  # fmt: skip
    texts = [{"text": f"{a} apples and {b} pears are {a + b} fruits. " * a} for a, b in sums[:6]]
    questions = [{"question": f"What is {a} + {b}?", "answer": str(a + b)} for a, b in sums[24:]]
    files = [
        write(folder / f"{name}.jsonl", rows)
        for name, rows in (("choose", choices), ("read", texts), ("ask", questions))
    ]
    return [
        "evaluation=tasks",
        f"evaluation.tasks=[{','.join(files)}]",
        "evaluation.task_settings.max_new_tokens=8",
        "evaluation.task_settings.batch_tokens=512",
        "evaluation.speed.prompt_tokens=[16]",
        "evaluation.speed.new_tokens=4",
        "evaluation.speed.repeats=1",
    ]


@pytest.fixture(scope="module")
def sweep(tasks: list[str], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Two jobs that need the original's evaluation."""
    folder = tmp_path_factory.mktemp("sweep")
    given = [*SHORT, *tasks, "evaluation.num_samples=1", "depth.keep_layers=8,10", "logger=both"]
    env = {"LAMINA_CACHE": str(folder / "cache"), "COLUMNS": "200"}
    swept = [f"hydra.sweep.dir={folder / 'sweep'}", *given]
    done = train(folder / "unused", "--multirun", *swept, **env)
    assert done.code == 0, done.errors
    return replace(done, folder=folder / "sweep")


def evaluated(sweep: Finished, job: int, role: str) -> EvaluationResult:
    return read_evaluation(sweep.folder / str(job) / "evaluation" / role)


def comparable(task: TaskResult) -> TaskResult:
    return replace(task, seconds=0.0)


def test_a_run_evaluates_its_three_models(sweep: Finished) -> None:
    for job, layers in enumerate((8, 10)):
        folder = sweep.folder / str(job) / "evaluation"
        assert {path.name for path in folder.iterdir()} == {*ROLES}
        result = json.loads((sweep.folder / str(job) / "result.json").read_text())
        for role in ROLES:
            names = {path.name for path in (folder / role).iterdir()}
            assert names == {"evaluation.json", "items.jsonl"}
            found = read_evaluation(folder / role)
            assert result["evaluation"][role] == found.figures
            assert found.role == role
            counts = {name: task.items for name, task in found.tasks.items()}
            assert counts == {"eval_rows": 60, "choose": 24, "read": 6, "ask": 6}
            items = [(item.task, item.id) for item in read_items(folder / role)]
            assert items == [(name, n) for name, count in counts.items() for n in range(count)]
            is_original = role == "original"
            assert found.model.layers == (12 if is_original else layers)
            assert found.model.kept_layers == list(range(12 if is_original else layers))
            assert (found.tasks["read"].agreement is None) == is_original
            assert [each.batch for each in found.speed or ()] == [1]
            loss = found.tasks["eval_rows"].metrics["loss"].value
            name = {"original": "baseline_eval_loss", "reduced": "reduced_eval_loss"}
            assert loss == pytest.approx(result["metrics"][name.get(role, "eval_loss")], abs=1e-6)


def test_the_closing_table_has_retention_with_its_interval(sweep: Finished) -> None:
    lines = [line.rstrip().split(maxsplit=2) for line in sweep.output.splitlines()]
    said = {(first, second): rest for first, second, rest in (x for x in lines if len(x) == 3)}
    for metric in ("acc", "acc_norm"):
        assert re.fullmatch(
            r"[\d.]+ % +retains [\d.]+ %( \([\d.]+ to [\d.]+\))?(, within noise)?, original "
            r"[\d.]+ %, reduced [\d.]+ %",
            said["choose", metric],
        )
    assert "of the speed-up that" in said["written", "tokens/s"]


def test_the_card_has_the_tasks_with_intervals_and_protocol(sweep: Finished) -> None:
    card = (sweep.folder / "0" / "checkpoints/pruned/final/README.md").read_text()
    assert "| task | original | reduced | final | chance |\n|---|---|---|---|---|\n" in card
    metric = evaluated(sweep, 0, "final").tasks["choose"].metrics["acc"]
    assert metric.stderr is not None
    shown = f"{100 * metric.value:.1f} % ± {196 * metric.stderr:.1f} %"
    (row,) = (line for line in card.splitlines() if line.startswith("| choose acc |"))
    assert row.endswith(f"| {shown} | 33.3 % |")
    assert "- choose: 24 items; " in card
    assert "scorer=lamina" in card


def test_tensorboard_and_wandb_have_the_tasks_before_and_after(sweep: Finished) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(sweep.folder / "0" / "logs/pruned/keep-8-first-lora"))
    events.Reload()
    reduced, final, original = (
        evaluated(sweep, 0, role).figures for role in ("reduced", "final", "original")
    )
    for task, name in (
        ("choose", "acc"), ("read", "loss"), ("read", "kl"), ("read", "top1"), ("ask", "looped"),
    ):  # fmt: skip
        logged = [(e.step, e.value) for e in events.Scalars(f"eval_tasks/{task}/{name}")]
        assert logged == [
            (0, pytest.approx(reduced[task][name])), (6, pytest.approx(final[task][name])),
        ]  # fmt: skip
    (before,) = events.Scalars("eval_tasks/choose/acc_original")
    assert before.value == pytest.approx(original["choose"]["acc"])
    (wandb,) = (sweep.folder / "0" / "wandb").glob("offline-run-*/*.wandb")
    content = wandb.read_bytes()
    for task, name in (("choose", "acc"), ("read", "kl"), ("read", "top1"), ("ask", "looped")):
        # A name, the tag and the length of its value, and the value as JSON.
        entry = rb"eval_tasks/%s/%s\x82\x01(.)" % (task.encode(), name.encode())
        found = re.finditer(entry, content, re.DOTALL)
        values = [content[each.end() : each.end() + each[1][0]] for each in found]
        assert {*map(float, values)} == {reduced[task][name], final[task][name]}


def test_a_sweep_evaluates_the_original_once(sweep: Finished) -> None:
    first, second = (evaluated(sweep, job, "original") for job in (0, 1))
    assert first == second
    logs = "".join((sweep.folder / str(job) / "train.log").read_text() for job in (0, 1))
    assert logs.count("evaluating the tasks of ") == 1


def test_runs_at_the_same_time_evaluate_the_original_once(tasks: list[str], tmp_path: Path) -> None:
    steps = ["max_steps=1", "eval_steps=1", "save_steps=1", "evaluation.num_samples=0"]
    given = [*SHORT, *tasks, *steps, "evaluation.agreement=false", "evaluation.reduced=false"]
    env = {"LAMINA_CACHE": str(tmp_path / "cache")}
    with (
        start("-m", "train", *given, "hydra.run.dir=a", cwd=tmp_path, **env) as first,
        start("-m", "train", *given, "hydra.run.dir=b", cwd=tmp_path, **env) as second,
    ):
        done = [process.completed(300) for process in (first, second)]
    assert [each.returncode for each in done] == [0, 0], done
    logs = "".join((tmp_path / name / "train.log").read_text() for name in "ab")
    assert logs.count("evaluating the tasks of ") == 1
    for name in ("evaluation.json", "items.jsonl"):
        ours, theirs = (tmp_path / run / "evaluation/original" / name for run in "ab")
        assert ours.read_text() == theirs.read_text()


def test_the_command_finds_what_the_run_found(
    sweep: Finished, tasks: list[str], tmp_path: Path
) -> None:
    run = sweep.folder / "0"
    names = {"run": run, "final": run / "checkpoints/pruned/final", "original": REFERENCE}
    for name, model in names.items():
        given = [f"model_name={model}", *tasks, f"hydra.run.dir={name}", "data=synthetic"]
        given += ["generator.train_rows=400", "generator.eval_rows=60", "max_seq_length=512"]
        done = lamina("evaluate", *given, cwd=tmp_path)
        assert done.code == 0, done.errors
        found = read_evaluation(tmp_path / name)
        expected = evaluated(sweep, 0, "original" if name == "original" else "final")
        assert found.tasks.keys() == expected.tasks.keys()
        for task, ours in found.tasks.items():
            assert comparable(ours) == comparable(expected.tasks[task])
        assert found.model.layers == expected.model.layers
        assert found.model.parameters == expected.model.parameters
        assert "choose acc" in done.output
        assert f"{name}/evaluation.json, items.jsonl" in done.output


def test_a_stopped_evaluation_goes_on_where_it_was(
    sweep: Finished, tasks: list[str], tmp_path: Path
) -> None:
    given = [f"model_name={REFERENCE}", *tasks, "hydra.run.dir=stopped"]
    code = (
        "import sys, time, lamina.measure.resumable as r\n"
        "append = r.append_items\n"
        "def slow(folder, items):\n"
        "    append(folder, items); time.sleep(1)\n"
        "r.append_items = slow\n"
        "from lamina.cli import main; sys.argv[:1] = ['lamina', 'evaluate']; main()"
    )
    with start("-c", code, *given, cwd=tmp_path) as started:
        deadline = time.monotonic() + 120
        kept: list[Path] = []
        while not kept or not kept[0].stat().st_size:
            kept = list(tmp_path.glob("stopped/.unfinished-*/items.jsonl"))
            assert time.monotonic() < deadline
            assert started.poll() is None
            time.sleep(0.02)
        started.kill()
    before = read_items(kept[0].parent)
    assert 0 < len(before) < 36
    with kept[0].open("a") as file:
        file.write('{"task": "choose", "id": 1, "corr')  # a kill may leave half a line
    done = lamina("evaluate", *given, cwd=tmp_path)
    assert done.code == 0, done.errors
    whole = read_items(sweep.folder / "0" / "evaluation" / "original")
    undisturbed = [item for item in whole if item.task != "eval_rows"]
    assert read_items(tmp_path / "stopped") == undisturbed
    assert not list(tmp_path.glob("stopped/.unfinished-*"))
    file = tmp_path / "stopped" / "evaluation.json"
    written = file.read_text()
    assert lamina("evaluate", *given, cwd=tmp_path).code == 0  # nothing is left to do
    assert file.read_text() == written


def test_two_processes_find_what_one_does(
    sweep: Finished, tasks: list[str], tmp_path: Path
) -> None:
    given = [*SHORT, *tasks, "evaluation.num_samples=1", "distributed=2"]
    done = train(tmp_path / "run", *given, LAMINA_CACHE=str(tmp_path / "cache"))
    assert done.code == 0, done.errors
    for role in ("original", "reduced"):
        ours = read_items(done.folder / "evaluation" / role)
        theirs = read_items(sweep.folder / "0" / "evaluation" / role)
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            assert (mine.task, mine.id, mine.correct, mine.answer) == (
                other.task, other.id, other.correct, other.answer,
            )  # fmt: skip
            for name in ("nll", "kl"):
                assert getattr(mine, name) == pytest.approx(getattr(other, name), abs=1e-4)
            assert mine.log_likelihoods == pytest.approx(other.log_likelihoods, abs=1e-4)


CHOICE = {"context": "a", "choices": ["b", "c"], "label": 0}

BAD = {
    "a missing field": ([CHOICE, {"context": "a", "label": 0}], "row 2: choices is missing"),
    "no known form": ([{"contxt": "a"}], "row 1: found 'contxt'"),
    "a label out of range": ([CHOICE, CHOICE | {"label": 2}], "row 2: label is 2, expected 0 to 1"),
    "an empty file": ([], "the file has no items"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_items_are_refused_before_anything_slow(case: str, tmp_path: Path) -> None:
    rows, message = BAD[case]
    path = write(tmp_path / "items.jsonl", rows)
    given = [f"evaluation.tasks=[{path}]", "hydra.run.dir=run"]
    done = lamina("evaluate", f"model_name={REFERENCE}", *given, cwd=tmp_path)
    assert (done.code, done.output) == (1, "")
    assert done.refusal.startswith(f"error: evaluation.tasks={path}")
    assert message in done.refusal
    assert len(done.refusal.splitlines()) == 1
    assert not (tmp_path / "run" / "evaluation.json").exists()


def test_a_run_refuses_bad_items_before_it_chooses_layers(tmp_path: Path) -> None:
    path = write(tmp_path / "items.jsonl", [CHOICE, CHOICE | {"label": 2}])
    for mode in ("true", "false"):
        given = [*SHORT, f"evaluation.tasks=[{path}]", f"dry_run={mode}"]
        done = train(tmp_path / mode, *given)
        assert done.code == 1
        assert "row 2: label is 2, expected 0 to 1" in done.refusal
        assert "loading" not in done.errors


def test_what_does_not_fit_the_model_is_refused_before_the_training(tmp_path: Path) -> None:
    path = write(tmp_path / "items.jsonl", [{"text": "one two three"}])
    tasks = [f"evaluation.tasks=[{path}]", "evaluation.task_settings.window=4096"]
    for mode in ("true", "false"):
        given = [*SHORT, *tasks, "evaluation.baseline=false", "evaluation.reduced=false"]
        done = train(tmp_path / mode, *given, f"dry_run={mode}")
        assert done.code == 1
        assert done.refusal.splitlines()[-1] == (
            "error: evaluation.task_settings.window=4096: the model's longest sequence has 2048 "
            "tokens"
        )
        assert not [*tmp_path.rglob("checkpoint-*")]


def test_mistakes_on_the_command_line_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "items.jsonl", [CHOICE])
    model = f"model_name={REFERENCE}"
    for given, message in {
        ("model_name=x",): "evaluation.tasks is missing: set evaluation.tasks=VALUE",
        (model, "evaluation=default"): "nothing to evaluate: set evaluation.tasks, data or "
        "evaluation.speed.batch_sizes",
        (model, "evaluation.tasks=[itms.jsonl]"): "evaluation.tasks=itms.jsonl: no such file; did "
        "you mean items.jsonl?",
        (model, f"evaluation.tasks=[{path}]", "adapter=lora"): "adapter=lora: not a group of this "
        "command; use data or evaluation",
        (model, f"evaluation.tasks=[{path}]", "evaluation.speed.repeats=0"): "evaluation.speed."
        "repeats=0: use 1 or more",
        (model, "evaluation.tasks=[]", "evaluation.speed.prompt_tokens=[]"): "evaluation.speed."
        "prompt_tokens=[]: use one length or more",
        (model, f"evaluation.tasks={path}"): f"evaluation.tasks={path}: expected a list\n",
        ("model_name=nowhere/at-all", f"evaluation.tasks=[{path}]"): "model_name=nowhere/at-all: "
        "the hub cannot be reached and the model is not in the cache",
    }.items():
        done = lamina("evaluate", *given, cwd=tmp_path)
        assert (done.code, done.output) == (1, ""), given
        assert done.refusal.startswith(f"error: {message}"), done.errors
