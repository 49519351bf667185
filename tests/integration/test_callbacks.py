"""Early stopping, a run without callbacks, and the progress line."""

from pathlib import Path

from tests.conftest import SHORT, train


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
    assert "step" not in done.errors
    assert not (done.folder / "logs").exists()


def test_the_progress_line_shows_loss_rate_and_speed(tmp_path: Path) -> None:
    done = train(tmp_path / "run", *SHORT, "evaluation=none")
    for shown in ("loss=", "lr=", "tokens/s=", "mem=", "time=data ", "eval_loss=", "<"):
        assert shown in done.errors
