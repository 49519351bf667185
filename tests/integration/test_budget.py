"""budget.tokens: a run stops at the first step that reaches it, however its rows are taken."""

import json
import math
import shutil
from pathlib import Path

import pytest

from tests.conftest import SHORT, Finished, train

GIVEN = (
    *SHORT,
    "model.keep_layers=2",
    "generator.eval_rows=8",
    "max_steps=-1",
    "eval_steps=50",
    "save_steps=50",
    "evaluation=none",
    "max_seq_length=96",
)
WAYS = {
    "packed": (2200, "generator.train_rows=60"),
    "accumulated": (
        1900, "generator.train_rows=33", "packing=false", "gradient_accumulation_steps=2",
    ),
    "together": (1900, "generator.train_rows=29", "packing=false", "distributed=2"),
}  # fmt: skip
"""Budgets of several epochs that end within a step: packs, one process, two processes."""


def given(way: str) -> tuple[str, ...]:
    tokens, *others = WAYS[way]
    return (*GIVEN, f"budget.tokens={tokens}", *map(str, others))


@pytest.fixture(scope="module", params=WAYS)
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp(request.param)
    finished = train(folder / "run", *given(request.param), LAMINA_CACHE=str(folder / "cache"))
    assert finished.code == 0, finished.errors
    return finished


def trained_by_step(run: Path) -> dict[int, float]:
    """The trained tokens that TensorBoard has of each step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[int, float] = {}
    for path in (run / "logs").rglob("*tfevents*"):
        events = EventAccumulator(str(path))
        events.Reload()
        if "train/trained_tokens" in events.Tags()["scalars"]:
            found |= {each.step: each.value for each in events.Scalars("train/trained_tokens")}
    return found


def test_a_run_stops_at_the_first_step_that_reaches_the_budget(done: Finished) -> None:
    way = done.folder.parent.name.rstrip("0123456789")
    budget, counted, history = WAYS[way][0], trained_by_step(done.folder), done.result["history"]
    assert [*counted] == [entry["step"] for entry in history]
    *_, before, last = counted.values()
    assert before < budget <= last == done.metrics["trained_tokens"]
    assert last - before <= 0.02 * budget
    decay = len(counted) - math.ceil(0.03 * len(counted))  # warm-up comes first
    assert history[-1]["learning_rate"] == pytest.approx(2e-3 / decay)  # of the step to zero
    if way == "packed":
        resumes_with_the_same_count(done)
    elif way == "together":
        plan = train(done.folder.parent / "dry", *given(way), "dry_run=true")
        assert plan.code == 0, plan.errors
        steps = json.loads((plan.folder / "dry_run.json").read_text())["steps"]
        assert steps == len(counted)


def resumes_with_the_same_count(done: Finished) -> None:
    """Take the run back to its first checkpoint, as if it had been killed there, and resume."""
    folder, whole = done.folder, done.result
    first, last = sorted((folder / "checkpoints/pruned").glob("checkpoint-*"))
    assert first.name == "checkpoint-50"
    shutil.rmtree(last)
    shutil.rmtree(folder / whole["final"])
    (folder / "result.json").write_text(json.dumps({**whole, "status": "running"}))
    resumed = train(folder, *given("packed"))
    assert resumed.code == 0, resumed.errors
    assert resumed.result["resumed_from"] == str(first)
    assert resumed.result["history"] == whole["history"]
    for name in ("trained_tokens", "train_tokens", "eval_loss"):
        assert resumed.metrics[name] == whole["metrics"][name]


def test_early_stopping_ends_a_run_before_its_budget(tmp_path: Path) -> None:
    stops = ("callbacks=early_stopping", "callbacks.early_stopping.patience=1")
    stops += ("callbacks.early_stopping.threshold=9", "eval_steps=5", "save_steps=5")
    done = train(tmp_path / "run", *given("packed"), *stops)
    assert done.code == 0, done.errors
    counted = trained_by_step(done.folder)
    assert [*counted][-1] == 10
    assert done.metrics["trained_tokens"] == counted[10] < 2200


def test_a_budget_that_a_step_exceeds_is_refused(tmp_path: Path) -> None:
    done = train(tmp_path / "run", *given("packed"), "budget.tokens=1.5k")
    assert done.refusal == (
        "error: budget.tokens=1.5k, but one step trains up to 42 tokens, more than 2% of it: lower "
        "per_device_train_batch_size, gradient_accumulation_steps or max_seq_length, or raise "
        "budget.tokens\n"
    )
