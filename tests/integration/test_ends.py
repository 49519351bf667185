"""How runs and sweeps end: on a full or read-only disk, by a signal, by a bug."""

import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lamina.measure.results import read_result
from tests.conftest import SHORT, Finished, environment, run, start, train
from tests.forked import Process

QUICK = (*SHORT, "max_steps=1", "eval_steps=1", "save_steps=1", "evaluation=none")
SAVES = (*SHORT, "max_steps=8", "eval_steps=2", "save_steps=2", "save_total_limit=10")
FULL = (*SAVES, "evaluation=none", "logger=none", "adapter=full", "model.keep_layers=2")
REFUSED = ("model=dropped", "model.layer_to_drop=77,88")
"""A sweep of two jobs that are refused at once: the model has 12 layers."""


def tmpfs(folder: Path, megabytes: int) -> None:
    """Mount a small file system, or skip the test."""
    folder.mkdir()
    size = f"size={megabytes}m"
    command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    mountable = os.geteuid() == 0 and shutil.which("mount")
    if not mountable or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs root and the right to mount a tmpfs: run it in a container as root")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB."""
    tmpfs(tmp_path / "disk", 16)
    yield tmp_path / "disk"
    # Lazily: a process that has just ended may still hold a file there.
    subprocess.run(["umount", "--lazy", str(tmp_path / "disk")], check=True)


def fill(disk: Path, left: int) -> Path:
    """Fill a disk up to `left` bytes."""
    ballast = disk / "ballast"
    free = shutil.disk_usage(disk).free - left
    ballast.write_bytes(bytes(max(free, 0)))
    return ballast


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that even root cannot write to."""
    folder = tmp_path / "read_only"
    if os.geteuid() == 0:
        tmpfs(folder, 1)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield folder
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
    else:
        folder.mkdir(mode=0o500)
        yield folder
        folder.chmod(0o700)


def only_line(done: Finished) -> str:
    """Return a command's only error line, after checking that nothing else was printed about it."""
    assert "Traceback" not in done.errors
    assert "HYDRA_FULL_ERROR" not in done.errors
    assert "Error executing job" not in done.errors
    assert "Logging error" not in done.errors
    (line,) = [line for line in done.errors.splitlines() if line.startswith("error")]
    assert done.errors.splitlines()[-1] == line
    return line


def steps(folder: Path) -> list[int]:
    """Return the steps of a run's checkpoints; each one is complete."""
    states = folder.glob("checkpoints/*/checkpoint-*")
    return sorted(
        json.loads((path / "trainer_state.json").read_text())["global_step"] for path in states
    )


def test_a_disk_full_while_saving_leaves_complete_checkpoints_and_the_reason(
    disk: Path, tmp_path: Path
) -> None:
    undisturbed = train(tmp_path / "undisturbed", *FULL)
    assert undisturbed.code == 0, undisturbed.errors
    one = tmp_path / "undisturbed" / "checkpoints" / "pruned" / "checkpoint-2"
    size = sum(path.stat().st_size for path in one.iterdir())
    # The run folder is on the disk too: result.json must find room for the reason.
    ballast = fill(disk, int(size * 2.6))
    done = train(disk / "run", *FULL)
    assert done.code == 1
    line = only_line(done)
    where = disk / "run" / "checkpoints" / "pruned"
    assert line.startswith(f"error: output_dir: {where} cannot be written: No space left on device")
    assert " MB are free, " in line
    assert line.endswith(
        " MB are needed; earlier checkpoints are intact: make room and start the same command "
        "again in that folder"
    )
    assert steps(disk / "run") == [2, 4]
    assert not list(where.glob(".*"))
    assert (done.result["status"], done.result["error"]) == ("failed", line.removeprefix("error: "))
    ballast.unlink()
    again = train(disk / "run", *FULL, "save_total_limit=1")
    assert again.code == 0, again.errors
    assert again.result["history"] == undisturbed.result["history"]
    assert again.metrics["eval_loss"] == undisturbed.metrics["eval_loss"]


def test_a_disk_full_while_saving_ends_all_processes(disk: Path, tmp_path: Path) -> None:
    fill(disk, 6_000_000)  # a checkpoint takes 4.1 MB
    given = (*FULL, "distributed=2", f"output_dir={disk / 'checkpoints'}")
    done = train(tmp_path / "run", *given)
    assert done.code == 1
    where = disk / "checkpoints" / "pruned"
    assert only_line(done).startswith(f"error: output_dir: {where} cannot be written: No space")
    assert [path.name for path in where.glob("checkpoint-*")] == ["checkpoint-2"]
    assert not list(where.glob(".*.partial"))


@pytest.mark.parametrize("write", ["torch", "safetensors", "text"])
def test_every_writer_recognises_a_full_disk(disk: Path, write: str) -> None:
    import torch
    from safetensors.torch import save_file

    from lamina.errors import OutputError
    from lamina.runtime.files import disk_errors

    content = {"a": torch.zeros(10**6)}
    writers: dict[str, Callable[[], Any]] = {
        "torch": lambda: torch.save(content, disk / "file"),
        "safetensors": lambda: save_file(content, disk / "file"),
        "text": lambda: (disk / "file").write_text("0" * 4 * 10**6),
    }
    fill(disk, 10**6)
    where = f"{disk} cannot be written: No space left on device; "
    with pytest.raises(OutputError, match=where), disk_errors(disk):
        writers[write]()


def test_a_disk_full_before_the_run_is_reported_at_once(disk: Path) -> None:
    fill(disk, 0)
    done = train(disk / "run", *QUICK)
    assert done.code == 1
    line = only_line(done)
    assert line.startswith(f"error: hydra.run.dir: {disk / 'run'}")
    assert line.endswith(
        "cannot be written: No space left on device; 0 MB are free; make room and start the same "
        "command again in that folder"
    )


def test_a_disk_full_at_the_end_costs_no_training(disk: Path, tmp_path: Path) -> None:
    given = (*FULL, "max_steps=2", f"output_dir={disk / 'checkpoints'}")
    ballast = fill(disk, 4_900_000)  # a checkpoint takes 4.1 MB, final/ 1.4 MB
    done = train(tmp_path / "run", *given)
    assert done.code == 1
    final = disk / "checkpoints" / "pruned" / "final"
    assert only_line(done).startswith(f"error: output_dir: {final} cannot be written: No space")
    assert [path.name for path in final.parent.iterdir() if path.is_dir()] == ["checkpoint-2"]
    assert done.result["status"] == "failed"
    ballast.unlink()
    again = train(tmp_path / "run", *given)
    assert again.code == 0, again.errors
    assert again.result["history"] == done.result["history"]
    assert (final / "model.safetensors").is_file()


@pytest.mark.parametrize(("pages", "file"), [(7, "result.json"), (10, "eval.jsonl")])
def test_the_file_that_does_not_fit_is_named(
    disk: Path, tmp_path: Path, pages: int, file: str
) -> None:
    fill(disk, pages * 4096)
    done = train(disk / "run", *QUICK, "logger=none", f"output_dir={tmp_path / 'checkpoints'}")
    assert done.code == 1
    line = only_line(done)
    assert line.startswith(f"error: {disk / 'run' / file} cannot be written: No space left on")


def test_a_disk_full_of_events_ends_the_run(disk: Path, tmp_path: Path) -> None:
    fill(disk, 4096)
    done = train(tmp_path / "run", *QUICK, f"logging_dir={disk}")
    assert done.code == 1
    line = only_line(done)
    logs = disk / "pruned" / "keep-8-first-lora"
    assert line.startswith(f"error: logging_dir: {logs} cannot be written: No space")
    assert done.result["error"] == line.removeprefix("error: ")


def test_a_report_that_does_not_fit_is_reported_and_the_jobs_are_kept(
    disk: Path, tmp_path: Path
) -> None:
    for name in "01":
        (tmp_path / name).mkdir()
        (disk / name).symlink_to(tmp_path / name)
    sweep = ("--multirun", f"hydra.sweep.dir={disk}", *SHORT, *REFUSED)
    assert train(tmp_path, *sweep).errors.splitlines()[-1].startswith("error: 2 of 2 jobs")
    for path in disk.glob("report.*"):
        path.unlink()
    fill(disk, 4096)  # for the owner's file
    done = train(tmp_path, *sweep)
    assert done.code == 1
    assert "Traceback" not in done.errors
    said = f"error: {disk / 'report.csv'} cannot be written: No space left on device; 0 MB are free"
    assert sum(line.startswith(said) for line in done.errors.splitlines()) == 3
    assert done.errors.splitlines()[-1].startswith(said)
    assert [(read_result(tmp_path / name) or {})["status"] for name in "01"] == ["failed"] * 2


@pytest.mark.parametrize(
    "key", ["hydra.run.dir", "output_dir", "logging_dir", "LAMINA_CACHE", "HF_DATASETS_CACHE"]
)
def test_a_read_only_folder_is_refused_before_the_data_is_read(
    read_only: Path, tmp_path: Path, key: str
) -> None:
    folder = read_only / "run" if key == "hydra.run.dir" else tmp_path / "run"
    given = [f"{key}={read_only}"] if key.endswith("_dir") else []
    cache = {key: str(read_only)} if key.isupper() else {}
    baseline = "evaluation=default" if cache else "evaluation=none"
    done = train(folder, *SHORT, baseline, *given, cwd=tmp_path, **cache)
    assert done.code == 1
    line = only_line(done)
    assert line.startswith(f"error: {key}: {read_only}")
    assert " cannot be written: " in line
    assert line.endswith(f"; use another {key}")
    assert done.refusal.splitlines() == [line]
    if folder == tmp_path / "run":
        assert (done.result["status"], done.result["data"]) == ("failed", {})
        assert done.result["error"] == line.removeprefix("error: ")


@pytest.mark.parametrize("key", ["trainer.cache", "LAMINA_CACHE"])
def test_a_read_only_teacher_cache_is_refused_before_the_data_is_read(
    read_only: Path, tmp_path: Path, key: str
) -> None:
    auto = key.isupper()
    given = ("trainer=distill", f"trainer.cache={'auto' if auto else read_only}")
    cache = {key: str(read_only)} if auto else {}
    done = train(tmp_path / "run", *SHORT, "evaluation=none", *given, cwd=tmp_path, **cache)
    reason = os.strerror(errno.EACCES if os.geteuid() else errno.EROFS)
    line = f"{key}: {read_only} cannot be written: {reason}; use another {key}"
    assert (done.code, done.refusal) == (1, f"error: {line}\n")
    assert (done.result["error"], done.result["data"]) == (line, {})


def test_a_read_only_sweep_folder_is_refused(read_only: Path, tmp_path: Path) -> None:
    given = ("--multirun", f"hydra.sweep.dir={read_only / 'sweep'}", *SHORT, *REFUSED)
    done = train(tmp_path / "run", *given)
    assert done.code == 1
    assert only_line(done).endswith("; use another hydra.sweep.dir")
    assert len(done.refusal.splitlines()) == 1


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir", "output_dir"])
def test_a_file_is_no_folder(tmp_path: Path, key: str) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / ("file" if key == "hydra.run.dir" else "run")
    sweep = ["--multirun", "seed=1,2"] if "sweep" in key else []
    done = train(folder, *sweep, *SHORT, f"{key}={tmp_path / 'file'}")
    assert done.code == 1
    reason = "cannot be written: Not a directory; use another"
    assert done.refusal == f"error: {key}: {tmp_path / 'file'} {reason} {key}\n"


def started(cwd: Path, *overrides: str) -> subprocess.Popen[str]:
    """Start a sweep and capture its errors."""
    return subprocess.Popen(
        [sys.executable, "-m", "train", "--multirun", *overrides],
        cwd=cwd,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=environment(),
        text=True,
        # A process that a shell starts in the background ignores Ctrl-C, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def dropped(folder: Path) -> str:
    """Return the layer that a job drops."""
    given = (read_result(folder) or {})["overrides"]
    return next(o for o in given if "layer_to_drop" in o).partition("=")[2]


def test_a_run_outlives_its_wandb_process(tmp_path: Path) -> None:
    """SLURM ends all processes of a job that it preempts."""
    folder = tmp_path / "run"
    given = (*SHORT, "max_steps=30", "evaluation=none", "logger=wandb", "model.keep_layers=2")
    with start("-m", "train", f"hydra.run.dir={folder}", *given, cwd=tmp_path) as process:
        while not list(folder.glob("checkpoints/*/checkpoint-3")):
            assert process.poll() is None
            time.sleep(0.02)
        others = psutil.Process(process.pid).children(recursive=True)
        assert "wandb-core" in [other.name() for other in others]
        for other in others:
            other.terminate()
        assert process.completed(300).returncode == 0
    result = read_result(folder) or {}
    assert (result["status"], len(result["history"])) == ("completed", 30)
    said = "Connection lost; later steps are not logged there"
    assert (folder / "train.log").read_text().count(said) == 1


def test_two_sweeps_started_at_once_have_separate_folders(tmp_path: Path) -> None:
    layers = ("77,88", "78,89")
    given = ("-m", "train", "--multirun", *SHORT, "model=dropped")
    both = [start(*given, f"model.layer_to_drop={each}", cwd=tmp_path) for each in layers]
    for process in both:
        with process:
            process.completed(120)
    folders = list((tmp_path / "multirun").glob("*/*"))
    assert len(folders) == 2
    found = sorted([dropped(folder / name) for name in "01"] for folder in folders)
    assert [",".join(each) for each in found] == list(layers)
    assert all((folder / "report.csv").is_file() for folder in folders)


def test_ctrl_c_keeps_complete_jobs_and_the_same_command_runs_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "jobs"
    given = (f"hydra.sweep.dir={folder}", *QUICK, "model=dropped", "model.layer_to_drop=3,5,7")
    with started(tmp_path, *given) as process:
        while (read_result(folder / "0") or {}).get("status") != "completed":
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGSTOP)
        second = train(tmp_path / "unused", "--multirun", *given)
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        errors = process.communicate(timeout=60)[1]
    assert time.monotonic() - began < 20
    assert process.returncode == 130
    assert second.code == 1
    assert only_line(second).startswith(f"error: {folder} belongs to process {process.pid} on ")
    assert only_line(second).endswith("wait for it, or use another hydra.sweep.dir")
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("error: interrupted; ")
    command = shlex.split(errors.partition("; to run only these again: ")[2])
    assert command == [
        sys.executable,
        "-m",
        "train",
        "--multirun",
        *given[1:],
        "hydra.sweep.dir=jobs",
    ]
    statuses = [(read_result(folder / name) or {}).get("status") for name in "012"]
    assert statuses[0] == "completed"
    assert "completed" not in statuses[1:]
    assert ",completed,model.layer_to_drop=3," in (folder / "report.csv").read_text()
    first = (folder / "0" / "result.json").stat()
    assert run(*command[1:], cwd=tmp_path).returncode == 0
    assert [(read_result(folder / name) or {})["status"] for name in "012"] == ["completed"] * 3
    assert (folder / "0" / "result.json").stat().st_mtime_ns == first.st_mtime_ns
    assert not list(folder.glob(".owner*"))


@pytest.mark.parametrize("swallowed", ["in a finalizer", "and something else fails"])
def test_ctrl_c_ends_a_sweep_though_a_library_swallows_it(tmp_path: Path, swallowed: str) -> None:
    lines = [
        "import os, signal, lamina.run, train",
        "signal.signal(signal.SIGINT, signal.default_int_handler)",
        "class Finalized:",
        "    def __del__(self): os.kill(os.getpid(), signal.SIGINT)",
        "def plan(experiment):",
        "    Finalized()",
        "    if not FINALIZER: raise TypeError",
        "lamina.run.plan = plan",
        "train.main()",
    ]
    code = "\n".join(lines).replace("FINALIZER", str(swallowed == "in a finalizer"))
    given = ("--multirun", f"hydra.sweep.dir={tmp_path}", *QUICK, "seed=1,2")
    done = run("-c", code, *given, cwd=tmp_path)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert "\nerror: interrupted; 2 of 2 jobs did not complete: 0 (interrupted)" in done.stderr
    assert (read_result(tmp_path / "0") or {})["status"] == "interrupted"
    assert not (tmp_path / "1").exists()


@pytest.mark.parametrize("jobs", [(), ("--multirun", "seed=1,2")])
def test_a_bug_prints_one_line_and_logs_its_traceback(
    tmp_path: Path, jobs: tuple[str, ...]
) -> None:
    code = "import lamina.run, train; lamina.run.plan = lambda experiment: 1 / 0; train.main()"
    folder = tmp_path / "run"
    folders = (f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}")
    done = run("-c", code, *jobs, *folders, *SHORT, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Error executing job" not in done.stderr
    assert "HYDRA_FULL_ERROR" not in done.stderr
    for name in "01" if jobs else ".":
        log = folder / name / "train.log"
        told = f"error in job {name}" if jobs else "error"
        line = f"{told}: ZeroDivisionError: division by zero; the traceback is in {log}"
        assert done.stderr.splitlines().count(line) == 1
        assert "Traceback (most recent call last)" in log.read_text()
        assert (read_result(folder / name) or {})["error"] == "ZeroDivisionError: division by zero"


def test_a_dry_run_of_a_sweep_fails_if_a_job_cannot_run(tmp_path: Path) -> None:
    given = ("--multirun", f"hydra.sweep.dir={tmp_path}", *SHORT, "dry_run=true", "model=dropped")
    done = train(tmp_path / "run", *given, "model.layer_to_drop=3,77")
    assert done.code == 1
    assert done.errors.splitlines()[-1] == "error: 1 of 2 jobs cannot run: 1; see above"
    assert not list(tmp_path.glob("report.*"))
    assert train(tmp_path / "run", *given, "model.layer_to_drop=3").code == 0
    for content in ("{", '{"seconds": 1}', '{"seconds": 1, "footprint": {"disk": "1"}}'):
        (tmp_path / "0" / "dry_run.json").write_text(content)  # of an earlier command
        done = train(tmp_path / "run", *given, "model.layer_to_drop=77,78")
        assert done.output.splitlines()[-1].startswith("sweep of 0 of 2 jobs: ")
        last = done.errors.splitlines()[-1]
        assert (done.code, last) == (1, "error: 2 of 2 jobs cannot run: 0, 1; see above")


MANY = (*SHORT, "max_steps=60", "eval_steps=20", "save_steps=20", "logging_steps=7")
INTERRUPTED = (*MANY, "evaluation=none", "logger=none", "model.keep_layers=2")


def wait_for(path: Path, process: Process) -> None:
    while not path.exists():
        assert process.poll() is None, process.completed(1)
        time.sleep(0.01)


def continued(errors: str, folder: Path) -> list[str]:
    """Return the command that an interrupted run prints, after checking that line."""
    assert "Traceback" not in errors
    *_, line = errors.splitlines()
    said, _, command = line.partition(" to continue: ")
    assert said == "error: interrupted;"
    assert command.endswith(f" hydra.run.dir={folder.name}")
    return shlex.split(command)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    done = train(tmp_path_factory.mktemp("undisturbed") / "run", *INTERRUPTED)
    assert done.code == 0, done.errors
    return done


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_saves_and_its_last_line_continues_it(
    undisturbed: Finished, tmp_path: Path, by: signal.Signals
) -> None:
    folder = tmp_path / "run"
    with start("-m", "train", *INTERRUPTED, "hydra.run.dir=run", cwd=tmp_path) as process:
        wait_for(folder / "checkpoints" / "pruned" / "checkpoint-20", process)
        os.kill(process.pid, by)
        done = process.completed(60)
    assert done.returncode == 128 + by
    assert done.stderr.count("interrupted: saving at the end of this step") == 1
    result = read_result(folder) or {}
    assert (result["status"], result["error"]) == ("interrupted", "interrupted")
    assert 20 <= steps(folder)[-1] < 60
    saved = folder / "checkpoints" / "pruned" / f"checkpoint-{steps(folder)[-1]}"
    again = run(*continued(done.stderr, folder)[1:], cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    result = read_result(folder) or {}
    assert result["resumed_from"] == str(saved)
    assert result["history"] == undisturbed.result["history"]
    assert result["metrics"]["eval_loss"] == undisturbed.metrics["eval_loss"]


SLOW = """
import time, lamina.heal.trainer, lamina.run, train
module, name, at = {place}
usual = getattr(module, name)
def slow(*arguments, **options):
    if at is None or arguments[0].state.global_step == at:
        open("slow", "w").close()
        for _ in range(1000):
            time.sleep(0.1)  # a signal right before one long sleep would wait for its end
    return usual(*arguments, **options)
setattr(module, name, slow)
train.main()
"""


def slow(folder: Path, place: str) -> str:
    """Make a script that trains, takes very long at a place and makes a file there."""
    (folder / "train_slowly.py").write_text(SLOW.format(place=place))
    return "train_slowly.py"


def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    script = slow(tmp_path, "lamina.heal.trainer.TokenLossTrainer, 'training_step', 25")
    with start(script, *INTERRUPTED, "hydra.run.dir=run", cwd=tmp_path) as process:
        wait_for(tmp_path / "slow", process)
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        os.kill(process.pid, signal.SIGINT)
        began = time.monotonic()
        done = process.completed(60)
    assert time.monotonic() - began < 5
    assert done.returncode == 130
    assert "Ctrl-C again leaves at once" in done.stderr
    continued(done.stderr, tmp_path / "run")
    assert (read_result(tmp_path / "run") or {})["status"] == "interrupted"
    assert steps(tmp_path / "run") == [20]


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("where", ["feed", "keep"])
def test_outside_training_a_signal_ends_at_once(
    tmp_path: Path, by: signal.Signals, where: str
) -> None:
    quick = (*QUICK, "model.keep_layers=2", "hydra.run.dir=run")
    script = slow(tmp_path, f"lamina.run, {where!r}, None")
    with start(script, *quick, cwd=tmp_path) as process:
        wait_for(tmp_path / "slow", process)
        os.kill(process.pid, by)
        began = time.monotonic()
        done = process.completed(60)
    assert time.monotonic() - began < 5
    assert done.returncode == 128 + by
    continued(done.stderr, tmp_path / "run")
    result = read_result(tmp_path / "run") or {}
    assert (result["status"], result["error"]) == ("interrupted", "interrupted")


def test_a_run_under_nohup_ignores_a_hangup(tmp_path: Path) -> None:
    code = "import signal, train; signal.signal(signal.SIGHUP, signal.SIG_IGN); train.main()"
    with start("-c", code, *INTERRUPTED, "hydra.run.dir=run", cwd=tmp_path) as process:
        wait_for(tmp_path / "run" / "checkpoints" / "pruned" / "checkpoint-20", process)
        os.kill(process.pid, signal.SIGHUP)
        assert process.completed(60).returncode == 0
