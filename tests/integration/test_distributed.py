"""Several processes train as one: same losses, same files, one message if one fails."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lamina.measure.results import read_result
from lamina.runtime.checkpoints import damage
from tests.conftest import SHORT, Finished, environment, train, unwell

# 13 rows, four at once: each epoch has four steps, the last one with one row.
GIVEN = (
    *SHORT,
    "generator.train_rows=13",
    "generator.eval_rows=31",
    "packing=false",
    "max_steps=9",
    "per_device_train_batch_size=2",
    "per_device_eval_batch_size=2",
    "evaluation.num_samples=2",
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("alone") / "run"
    return train(folder, *GIVEN, "gradient_accumulation_steps=2")


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("together") / "run"
    return train(folder, *GIVEN, "distributed=2", LAMINA_CACHE=str(folder.parent / "cache"))


def test_two_processes_have_the_losses_of_one(alone: Finished, together: Finished) -> None:
    assert (alone.code, together.code) == (0, 0), alone.errors + together.errors
    assert together.result["settings"]["distributed"] == 2
    ours, theirs = together.result["history"], alone.result["history"]
    assert [entry["step"] for entry in ours] == list(range(1, 10))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, abs=1e-5)
    for name in ("baseline", "reduced", "eval"):
        figure = f"{name}_loss" if name == "eval" else f"{name}_eval_loss"
        assert together.metrics[figure] == pytest.approx(alone.metrics[figure], abs=1e-5)
    assert together.metrics["train_tokens"] == alone.metrics["train_tokens"]
    assert together.result["samples"] == alone.result["samples"]


def test_two_processes_write_the_files_of_one(alone: Finished, together: Finished) -> None:
    ours, theirs = (
        {str(path.relative_to(done.folder)) for path in done.folder.rglob("*") if path.is_file()}
        for done in (together, alone)
    )
    own = {path for path in ours | theirs if "rng_state" in path or "tfevents" in path}
    assert ours - own == theirs - own
    # Two each: the final figures come after transformers' callback has closed the first file.
    assert sum("tfevents" in path for path in own) == 4
    rows, others = (
        [json.loads(line) for line in (done.folder / "eval.jsonl").read_text().splitlines()]
        for done in (together, alone)
    )
    assert len(rows) == 31
    for row, other in zip(rows, others, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert row["input_ids"] == other["input_ids"]


def test_only_the_first_process_prints_and_it_names_the_batch_size(together: Finished) -> None:
    lines = together.refusal.splitlines()
    said = [line for line in lines if not re.search(r"\d (s|min)( left)?(,|$)", line)]
    assert len(said) == 4, said
    assert said[0] == (
        "4 sequences a step: per_device_train_batch_size=2 x 2 processes x "
        "gradient_accumulation_steps=1"
    )
    assert "untouched" in said[1]
    assert together.output.count("tokens/s") == 1


def test_a_failing_rank_ends_all_and_the_next_start_resumes(
    together: Finished, tmp_path: Path
) -> None:
    given = (*GIVEN, "distributed=2")
    folder = tmp_path / "run"
    failed = train(folder, *given, **unwell(tmp_path, "raises"))
    message = f"rank 1: ValueError: rank one is unwell; the traceback is in {folder / 'train.log'}"
    assert failed.code == 1
    assert failed.errors.splitlines()[-1] == f"error: {message}"
    assert "Traceback" not in failed.errors
    assert (failed.result["status"], failed.result["error"]) == ("failed", message)
    assert 'raise ValueError("rank one is unwell")' in (folder / "train.log").read_text()

    killed = train(folder, *given, **unwell(tmp_path, "killed"))
    assert killed.code == 1
    assert killed.errors.splitlines()[-1] == (
        "error: rank 1: killed by SIGKILL, often because memory ran out"
    )
    again = train(folder, *given)
    assert again.code == 0, again.errors
    assert again.result["history"] == together.result["history"]
    assert again.metrics["eval_loss"] == together.metrics["eval_loss"]


def test_a_run_does_not_resume_with_another_number_of_processes(together: Finished) -> None:
    before = together.result
    done = train(together.folder, *GIVEN)
    assert done.code == 1
    assert "checkpoint-9 has distributed=2, not 1: use another hydra.run.dir" in done.errors
    assert together.result == before


def test_each_job_of_a_sweep_starts_its_own_processes(tmp_path: Path) -> None:
    quick = (*GIVEN, "max_steps=1", "eval_steps=1", "save_steps=1", "evaluation=none")
    jobs = ("model=dropped", "model.layer_to_drop=3,77", "distributed=2")
    done = train(tmp_path, "--multirun", f"hydra.sweep.dir={tmp_path / 'jobs'}", *quick, *jobs)
    assert done.code == 1
    first, second = (read_result(tmp_path / "jobs" / name) or {} for name in "01")
    assert (first["status"], first["settings"]["distributed"]) == ("completed", 2)
    assert second["error"].startswith("model.layer_to_drop=77, but the model has 12 layers")


def test_what_looks_like_an_interpolation_is_text_in_every_process(tmp_path: Path) -> None:
    quick = (*GIVEN, "max_steps=1", "eval_steps=1", "save_steps=1", "evaluation=none")
    named = ("logger=wandb", r'logger.wandb.name="a \${b}"', "logger.wandb.mode=offline")
    done = train(tmp_path / "run", *quick, *named, "distributed=2")
    assert done.code == 0, done.errors


def test_a_round_of_another_config_is_not_taken_up(tmp_path: Path) -> None:
    file, folder = tmp_path / "experiment" / "mine.yaml", tmp_path / "run"
    file.parent.mkdir()
    quick = ("max_steps=2", "eval_steps=1", "save_steps=1", "evaluation=none")
    given = (*GIVEN, *quick, "ladder.keep_layers=[10,8]", "distributed=2", "experiment=mine")

    def run_with(rate: str) -> Finished:
        file.write_text(
            "# @package _global_\n"
            f"defaults: [/experiment/quickstart@_global_, _self_]\nlearning_rate: {rate}\n"
        )
        return train(folder, "--config-dir=" + str(tmp_path), *given[1:])

    whole = run_with("2e-3")
    assert whole.code == 0, whole.errors
    first = read_result(folder / "ladder" / "1") or {}
    assert first["config"] == whole.result["config"]  # on which all processes must agree
    shutil.rmtree(folder / "checkpoints")
    (folder / "result.json").write_text(json.dumps({**whole.result, "status": "interrupted"}))
    again = run_with("1e-5")
    assert again.code == 1
    assert "has trainer.args.learning_rate=0.002, not 1e-05" in again.errors


def test_a_users_own_torchrun_has_one_folder(tmp_path: Path) -> None:
    quick = (*GIVEN, "max_steps=1", "eval_steps=1", "save_steps=1", "evaluation=none")
    launcher = ("torch.distributed.run", "--nproc-per-node", "2", "-m", "train")
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *quick, "adapter=full", "learning_rate=1e-4"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs").glob("*/*")
    result = read_result(folder) or {}
    assert (result["status"], result["settings"]["distributed"]) == ("completed", 2)
    assert (folder / result["final"] / "model.safetensors").is_file()


def test_two_visible_devices_start_two_processes_that_end_with_their_parent(tmp_path: Path) -> None:
    """Only a driver's tool and the variable claim devices; the processes compute on the CPU."""
    folder, tool = tmp_path / "run", tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho GPU 0: One\necho GPU 1: Two\n")
    tool.chmod(0o755)
    command = [sys.executable, "-m", "train", f"hydra.run.dir={folder}", *GIVEN, "max_steps=500"]
    with subprocess.Popen(
        [*command, "evaluation=none"],
        env=environment(CUDA_VISIBLE_DEVICES="0,1", PATH=f"{tmp_path}:{os.environ['PATH']}"),
        stderr=subprocess.DEVNULL,
    ) as process:
        ranks = []
        while not (folder / "checkpoints" / "pruned" / "checkpoint-3").exists():
            assert process.poll() is None
            ranks = psutil.Process(process.pid).children()
            time.sleep(0.1)
        assert len(ranks) == 2
        assert (read_result(folder) or {})["settings"]["distributed"] == 2
        process.kill()
    assert psutil.wait_procs(ranks, timeout=10)[1] == []


@pytest.mark.parametrize("launcher", ["ours", "torchrun"])
def test_ctrl_c_saves_all_processes_at_one_step(tmp_path: Path, launcher: str) -> None:
    given = ["hydra.run.dir=run", *GIVEN, "max_steps=500", "evaluation=none"]
    torchrun = ["torch.distributed.run", "--nproc-per-node", "2", "-m", "train", *given]
    ours = ["train", *given, "distributed=2"]
    inside = tmp_path / "run" / "checkpoints" / "pruned"
    with subprocess.Popen(
        [sys.executable, "-m", *(ours if launcher == "ours" else torchrun)],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        while not (inside / "checkpoint-3").exists():
            assert process.poll() is None
            time.sleep(0.1)
        ranks = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    assert [rank.is_running() for rank in ranks] == [False, False]
    assert (read_result(tmp_path / "run") or {})["status"] == "interrupted"
    assert errors.count("interrupted: saving at the end of this step") == 1
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    command = shlex.split(line.removeprefix("error: interrupted; to continue: "))
    last = max(inside.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    assert damage(last, {"adapter": "lora", "distributed": 2}) is None
    if launcher == "ours":
        assert process.returncode == 130
        assert errors.splitlines()[-1] == line
        assert "Traceback" not in errors
    more = subprocess.run(
        [*command, f"max_steps={int(last.name[11:]) + 1}"],
        cwd=tmp_path,
        env=environment(),
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert more.returncode == 0, more.stderr
    result = read_result(tmp_path / "run") or {}
    assert (result["status"], result["resumed_from"]) == ("completed", str(last))


def test_a_dry_run_counts_all_processes(tmp_path: Path) -> None:
    given = ("dry_run=true", "distributed=2", "max_steps=-1", "num_train_epochs=1")
    done = train(tmp_path / "run", *GIVEN, *given, COLUMNS="200")
    assert done.code == 0, done.errors
    lines = [" ".join(line.split()) for line in done.output.splitlines()]
    assert "batch 4 sequences in one step, in 2 processes together" in lines
    assert "steps 4 of the optimizer" in lines
