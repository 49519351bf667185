"""Two processes never train into one folder; a dead owner's folder is free."""

import shutil
import time
from pathlib import Path

from lamina.runtime.lock import LOCK_FILE
from tests.conftest import SHORT, start, train
from tests.forked import Process

LONG = (*SHORT, "max_steps=500", "evaluation=none")


def started(folder: Path, checkpoints: str, *overrides: str) -> Process:
    """Start a long run and wait until it holds its checkpoint folder."""
    command = ("-m", "train", f"hydra.run.dir={folder}", *LONG, *overrides)
    process = start(*command, cwd=folder.parent)
    while not (folder.parent / checkpoints / "pruned" / LOCK_FILE).exists():
        assert process.poll() is None
        time.sleep(0.05)
    return process


def test_a_second_process_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    with started(tmp_path / "run", "run/checkpoints") as first:
        try:
            second = train(tmp_path / "run", *LONG)
        finally:
            first.kill()
    assert second.code == 1
    assert f"error: {tmp_path / 'run'} belongs to process {first.pid} on " in second.errors
    assert "is still running: wait for it, or use another hydra.run.dir" in second.errors
    # Killing the first one frees its folder.
    third = train(tmp_path / "run", *SHORT, "evaluation=none")
    assert third.code == 0, third.errors
    assert not list((tmp_path / "run").rglob(LOCK_FILE))


def test_a_separate_checkpoint_folder_has_one_owner_too(tmp_path: Path) -> None:
    with started(tmp_path / "one", "shared", "output_dir=shared") as first:
        try:
            second = train(tmp_path / "two", *LONG, "output_dir=shared")
        finally:
            first.kill()
    assert second.code == 1
    assert f"{tmp_path / 'shared' / 'pruned'} belongs to process {first.pid}" in second.errors


def test_checkpoints_that_outlive_their_run_folder_start_no_other_run(tmp_path: Path) -> None:
    given = (*SHORT, "evaluation=none", "model=dropped", f"output_dir={tmp_path / 'kept'}")
    done = train(tmp_path / "run", *given, "model.layer_to_drop=1")
    assert done.code == 0, done.errors
    shutil.rmtree(tmp_path / "run")
    again = train(tmp_path / "run", *given, "model.layer_to_drop=7")
    assert again.code == 1
    assert f"remove {tmp_path / 'kept' / 'dropped'} to start from scratch" in again.errors


def test_checkpoints_may_lie_in_the_run_folder_itself(tmp_path: Path) -> None:
    done = train(tmp_path / "pruned", *SHORT, f"output_dir={tmp_path}")
    assert done.code == 0, done.errors
    assert done.final == tmp_path / "pruned" / "final"
