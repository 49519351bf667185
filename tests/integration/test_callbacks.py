"""Early stopping, a run without callbacks, and the progress line."""

import re
from pathlib import Path

from tests.conftest import SHORT, Finished, train


def test_early_stopping_ends_a_run_that_no_longer_improves(tmp_path: Path) -> None:
    given = ("callbacks=early_stopping", "callbacks.early_stopping.patience=1", "evaluation=none")
    never = "callbacks.early_stopping.threshold=10"
    done = train(tmp_path / "run", *SHORT, *given, never, "max_steps=30")
    assert done.code == 0, done.errors
    evaluated = [e["step"] for e in done.result["history"] if e["eval_loss"] is not None]
    assert evaluated == [3, 6]


def test_a_run_without_callbacks_is_quiet_and_has_no_history(tmp_path: Path) -> None:
    done = train(tmp_path / "run", *SHORT, "callbacks=none", "logger=none", "evaluation=none")
    assert done.code == 0, done.errors
    assert done.result["history"] == []
    assert done.metrics["eval_loss"] > 0
    assert "steps" not in done.errors
    assert not (done.folder / "logs").exists()


def test_the_progress_line_ends_with_loss_speed_and_time(pruned: Finished) -> None:
    (line,) = [
        each
        for each in pruned.errors.splitlines()
        if each.startswith(f"{pruned.result['name']}: 6")
    ]
    steps, loss, speed, took, *extras = line.partition(": ")[2].split(", ")
    assert steps == "6 of 6 steps"
    assert loss == f"loss {pruned.result['history'][-1]['loss']:.4f}"
    assert re.fullmatch(r"[\d,]+ tokens/s", speed)
    assert re.fullmatch(r"\d+ (s|min)", took)
    names = [each.split()[0] for each in extras]
    assert names[:2] == ["lr", "mem"]
    assert "forward+backward" in names  # a part below 1 % is left out: data, in a quick moment
    assert extras[-1] == f"eval_loss {pruned.result['history'][-1]['eval_loss']:.4f}"
