"""`lamina clean`: which checkpoints go, and which stay."""

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lamina.runtime.lock import locked
from tests.conftest import Finished, environment, lamina

STEPS = (3, 6, 9)
STATE = {
    "max_steps": 9,
    "num_input_tokens_seen": 1,
    "epoch": 1,
    "log_history": [],
    "stateful_callbacks": {},
    "best_metric": 1.0,
    "best_global_step": 6,
}
"""Of trainer_state.json."""


def job(folder: Path, *, best: int = 6, adapter: bool = True) -> Path:
    """Write a completed run's folder; the adapter is not in final/ of a merged run."""
    checkpoints = folder / "checkpoints" / "pruned"
    for step in STEPS:
        checkpoint = checkpoints / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        state = {**STATE, "global_step": step, "best_model_checkpoint": f"old/checkpoint-{best}"}
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
        (checkpoint / "adapter_config.json").write_text("{}")
        (checkpoint / "weights").write_bytes(b"0" * 2_000_000)
    final = "checkpoints/pruned/final"
    (folder / final).mkdir()
    (folder / final / ("adapter_config.json" if adapter else "config.json")).write_text("{}")
    result = {"status": "completed", "metrics": {}, "overrides": [], "model_type": "pruned"}
    result["final"] = final
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def left(run: Path) -> list[int]:
    return sorted(int(path.name.rpartition("-")[2]) for path in run.rglob("*checkpoint-*"))


def test_only_checkpoints_that_are_no_longer_needed_go(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    job(sweep / "0")
    (sweep / "0" / "checkpoints" / "pruned" / "damaged-checkpoint-1").mkdir()
    job(sweep / "1", adapter=False)
    job(sweep / "2")
    with locked(sweep / "2", "hydra.run.dir"):
        done = lamina("clean", sweep, "--yes", cwd=tmp_path)
    assert done.code == 0, done.errors
    kept = [left(sweep / str(number)) for number in range(3)]
    assert kept == [[], [6], [3, 6, 9]]
    assert (sweep / "0" / "checkpoints" / "pruned" / "final" / "adapter_config.json").is_file()
    assert done.output.splitlines() == [
        *(f"    2 MB  {sweep}/0/checkpoints/pruned/checkpoint-{step}" for step in STEPS),
        f"    0 MB  {sweep}/0/checkpoints/pruned/damaged-checkpoint-1",
        *(f"    2 MB  {sweep}/1/checkpoints/pruned/checkpoint-{step}" for step in (3, 9)),
        "removed 6 checkpoints, 10 MB",
    ]
    assert done.refusal == (
        f"left alone: {sweep / '2'} belongs to process {os.getpid()} on {os.uname().nodename}, "
        "which is still running: wait for it, or use another hydra.run.dir\n"
    )
    again = lamina("clean", sweep / "0", "--yes", cwd=tmp_path)
    assert again.output == f"{sweep / '0'}: no checkpoint to remove\n"


def test_of_an_unfinished_run_the_last_whole_checkpoint_and_the_best_stay(
    pruned: Finished, tmp_path: Path
) -> None:
    for name, damaged in (("whole", ()), ("last", (6,)), ("all", (3, 6))):
        run = tmp_path / name
        shutil.copytree(pruned.folder, run)
        for step in damaged:
            (run / f"checkpoints/pruned/checkpoint-{step}/optimizer.pt").write_bytes(b"")
        result = {**pruned.result, "status": "failed", "final": None}
        (run / "result.json").write_text(json.dumps(result))
    done = lamina("clean", tmp_path, "--yes", cwd=tmp_path)
    assert done.code == 0, done.errors
    assert [left(tmp_path / name) for name in ("whole", "last", "all")] == [[6], [3, 6], [3, 6]]


def test_it_never_leaves_the_run(tmp_path: Path) -> None:
    other = job(tmp_path / "other")
    run = job(tmp_path / "run")
    result = json.loads((run / "result.json").read_text())
    for fields in (
        {"final": None, "model_type": "../../other/checkpoints/pruned"},
        {"final": "../other/checkpoints/pruned/final", "model_type": "../../../other"},
    ):
        (run / "result.json").write_text(json.dumps({**result, **fields}))
        done = lamina("clean", run, "--yes", cwd=tmp_path)
        assert (done.code, done.output) == (0, f"{run}: no checkpoint to remove\n"), done.errors
    assert left(other) == [*STEPS]


def test_a_run_whose_own_folder_holds_its_checkpoints(tmp_path: Path) -> None:
    """hydra.run.dir=DIR/pruned with output_dir=DIR; another name of that folder is no other."""
    inner = job(tmp_path / "run") / "checkpoints" / "pruned"
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    for final in ("final", "../pruned/final"):
        (inner / "result.json").write_text(json.dumps({**result, "final": final}))
        done = lamina("clean", inner, cwd=tmp_path)
        assert (done.code, done.refusal) == (0, "")
        assert len(done.output.splitlines()) == 4
    assert lamina("clean", inner, "--yes", cwd=tmp_path).code == 0
    assert left(inner) == []


def test_a_result_without_settings(tmp_path: Path) -> None:
    run = job(tmp_path / "run")
    result = {"status": "failed", "metrics": {}, "overrides": [], "model_type": "pruned"}
    (run / "result.json").write_text(json.dumps(result))
    done = lamina("clean", run, "--yes", cwd=tmp_path)
    assert (done.code, done.output) == (0, f"{run}: no checkpoint to remove\n"), done.errors


def test_without_a_terminal_it_only_lists(tmp_path: Path) -> None:
    run = job(tmp_path / "run")
    done = lamina("clean", "run", cwd=tmp_path)
    assert (done.code, done.refusal) == (0, "")
    assert done.output.splitlines() == [
        *(f"    2 MB  run/checkpoints/pruned/checkpoint-{step}" for step in STEPS),
        "3 checkpoints, 6 MB: nothing was removed; --yes removes them",
    ]
    assert left(run) == [*STEPS]


@pytest.mark.parametrize(("answer", "kept"), [("y\n", []), ("\n", [*STEPS])])
def test_on_a_terminal_it_asks(answer: str, kept: list[int], tmp_path: Path) -> None:
    run = job(tmp_path / "run")
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
    run, other = job(tmp_path / "run"), job(tmp_path / "b")
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
