"""`lamina clean`: which checkpoints go, and which stay."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from lamina.runtime.lock import locked
from tests.conftest import environment, lamina

STEPS = (3, 6, 9)


def job(folder: Path, *, status: str, best: int = 6, adapter: bool = True) -> Path:
    """Write a run's folder with three checkpoints; the adapter is not in final/ of a merged run."""
    checkpoints = folder / "checkpoints" / "pruned"
    for step in STEPS:
        checkpoint = checkpoints / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        state = {"global_step": step, "best_model_checkpoint": f"old/checkpoint-{best}"}
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
        (checkpoint / "adapter_config.json").write_text("{}")
        (checkpoint / "weights").write_bytes(b"0" * 2_000_000)
    final = None
    if status == "completed":
        final = "checkpoints/pruned/final"
        (folder / final).mkdir()
        (folder / final / ("adapter_config.json" if adapter else "config.json")).write_text("{}")
    result = {"status": status, "model_type": "pruned", "final": final}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def left(run: Path) -> list[int]:
    return sorted(int(path.name.partition("-")[2]) for path in run.rglob("checkpoint-*"))


def test_only_checkpoints_that_nobody_needs_go(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    job(sweep / "0", status="completed")
    job(sweep / "1", status="completed", adapter=False)
    job(sweep / "2", status="failed", best=3)
    job(sweep / "3", status="running")
    job(sweep / "4", status="completed")
    with locked(sweep / "4", "hydra.run.dir"):
        done = lamina("clean", sweep, "--yes", cwd=tmp_path)
    assert done.code == 0, done.errors
    kept = [left(sweep / str(number)) for number in range(5)]
    assert kept == [[], [6], [3, 9], [6, 9], [3, 6, 9]]
    assert (sweep / "0" / "checkpoints" / "pruned" / "final" / "adapter_config.json").is_file()
    assert done.output.splitlines() == [
        *(f"    2 MB  {sweep}/0/checkpoints/pruned/checkpoint-{step}" for step in STEPS),
        *(f"    2 MB  {sweep}/1/checkpoints/pruned/checkpoint-{step}" for step in (3, 9)),
        f"    2 MB  {sweep}/2/checkpoints/pruned/checkpoint-6",
        f"    2 MB  {sweep}/3/checkpoints/pruned/checkpoint-3",
        "removed 7 checkpoints, 14 MB",
    ]
    assert done.errors == (
        f"left alone: {sweep / '4'} belongs to process {os.getpid()} on {os.uname().nodename}, "
        "which is still running: wait for it, or use another hydra.run.dir\n"
    )
    again = lamina("clean", sweep / "0", "--yes", cwd=tmp_path)
    assert again.output == f"{sweep / '0'}: no checkpoint that nobody needs\n"


def test_without_a_terminal_it_only_lists(tmp_path: Path) -> None:
    run = job(tmp_path / "run", status="completed")
    done = lamina("clean", "run", cwd=tmp_path)
    assert done.code == 1
    assert len(done.output.splitlines()) == 3
    assert done.errors == (
        "error: 3 checkpoints, 6 MB: nothing was removed, for want of a terminal to ask: pass "
        "--yes\n"
    )
    assert left(run) == [*STEPS]


@pytest.mark.parametrize(("answer", "kept"), [("y\n", []), ("\n", [*STEPS])])
def test_on_a_terminal_it_asks(answer: str, kept: list[int], tmp_path: Path) -> None:
    run = job(tmp_path / "run", status="completed")
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode())
    command = [Path(sys.executable).with_name("lamina"), "clean", run]
    done = subprocess.run(
        command, stdin=theirs, capture_output=True, text=True, env=environment(), check=True
    )
    os.close(ours)
    os.close(theirs)
    assert "remove 3 checkpoints, 6 MB? [y/N] " in done.stdout
    assert left(run) == kept


def test_another_runs_checkpoints_and_other_folders_are_left_alone(tmp_path: Path) -> None:
    run, other = job(tmp_path / "run", status="completed"), job(tmp_path / "b", status="completed")
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(
        json.dumps({**result, "final": "../b/checkpoints/pruned/final"})
    )
    assert lamina("clean", run, "--yes", cwd=tmp_path).code == 0
    assert (left(run), left(other)) == ([], [*STEPS])
    (tmp_path / "none").mkdir()
    done = lamina("clean", "none", "--yes", cwd=tmp_path)
    assert (done.code, done.errors) == (
        1,
        "error: none: holds no run or sweep: pass the folder of one\n",
    )
