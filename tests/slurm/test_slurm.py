"""Sweeps on a real two-node SLURM: preemption, timeouts, a lost node."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lamina.launch.sweep import Sweep
from tests.conftest import FIRST_LINES, SHORT, environment, lamina, unwell

pytestmark = pytest.mark.skipif(
    shutil.which("slurmctld") is None or os.geteuid() != 0,
    reason="needs SLURM, as root: apt-get install slurm-wlm munge",
)

HERE = Path(__file__).parent
SLURM = (
    "hydra/launcher=slurm",
    "hydra.launcher.partition=low",
    "hydra.launcher.gpus_per_node=null",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=3",
    "hydra.launcher.timeout_min=10",
)
LONG = (
    *SHORT,
    "max_steps=40",
    "gradient_accumulation_steps=8",
    "eval_steps=10",
    "save_steps=10",
    "evaluation.num_samples=1",
    "model=dropped",
    "model.layer_to_drop=3",
)
LITTLE_TIME = (
    "hydra.launcher.timeout_min=3",
    "hydra.launcher.signal_delay_s=95",
    "hydra.launcher.max_num_timeout=9",
)
"""The signal comes after 25 to 85 seconds: SLURM may send it up to 60 s early."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which SLURM's commands find the cluster."""
    root = tmp_path_factory.mktemp("cluster")
    try:
        subprocess.run(["bash", HERE / "up.sh", root], check=True, capture_output=True, timeout=120)
        yield environment(SLURM_CONF=str(root / "slurm.conf"), OMP_NUM_THREADS="1")
    finally:
        subprocess.run(["bash", HERE / "down.sh", root], check=True, timeout=120)


def ask(variables: dict[str, str], *command: str) -> list[list[str]]:
    """Run one of SLURM's commands; return its lines, split into words."""
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines()]


@contextmanager
def swept(
    folder: Path, variables: dict[str, str], *overrides: str
) -> Iterator[subprocess.Popen[str]]:
    """Start a sweep; after the body wait for its end, and expect success."""
    command = [sys.executable, "-m", "train", "--multirun", f"hydra.sweep.dir={folder}"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(
        [*command, *overrides], cwd=folder.parent, env=variables, text=True, **pipes
    ) as process:
        try:
            yield process
            wait_for(lambda: process.poll() is not None, variables, 700)
        finally:
            process.kill()
        assert process.stdout is not None
        assert process.returncode == 0, process.stdout.read()


def ended(
    folder: Path, variables: dict[str, str], *overrides: str
) -> subprocess.CompletedProcess[str]:
    """Run a sweep that fails, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "train", "--multirun", f"hydra.sweep.dir={folder}", *overrides],
        cwd=folder.parent,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )


def wait_for(condition: Callable[[], bool], variables: dict[str, str], seconds: int) -> None:
    """Wait; meanwhile release requeued jobs, which SLURM holds for two minutes.

    A job released within a second is ended: the nodes take it for the one that they just cleared.
    """
    deadline, held = time.monotonic() + seconds, dict[str, float]()
    while not condition():
        assert time.monotonic() < deadline, ask(variables, "squeue")
        for words in ask(variables, "squeue", "-h", "-t", "PD", "-o", "%A %r"):
            if words[-1] != "BeginTime":
                continue
            if time.monotonic() - held.setdefault(words[0], time.monotonic()) > 3:
                del held[words[0]]
                update = ["scontrol", "update", f"jobid={words[0]}", "StartTime=now"]
                subprocess.run(update, env=variables, capture_output=True, check=False)
        time.sleep(0.5)


def result(folder: Path, number: int = 0) -> dict[str, Any]:
    return json.loads((folder / str(number) / "result.json").read_text())


def trained(folder: Path, step: int) -> Callable[[], bool]:
    state = folder / "0" / "checkpoints" / "dropped" / f"checkpoint-{step}" / "trainer_state.json"
    return state.is_file


def log(folder: Path) -> str:
    """Return what the jobs logged on the cluster."""
    return "".join(path.read_text() for path in (folder / ".submitit").rglob("*.out"))


@pytest.fixture(scope="module")
def undisturbed(cluster: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "sweep"
    with swept(folder, cluster, *LONG):
        pass
    return folder


def assert_equal(folder: Path, undisturbed: Path) -> None:
    ours, theirs = result(folder), result(undisturbed)
    assert ours["status"] == "completed"
    assert [entry["step"] for entry in ours["history"]] == list(range(1, 41))
    assert ours["history"] == theirs["history"]
    assert ours["metrics"]["eval_loss"] == theirs["metrics"]["eval_loss"]


def test_jobs_on_the_cluster_equal_local_ones(cluster: dict[str, str], tmp_path: Path) -> None:
    jobs = (*SHORT, "max_steps=3", "evaluation.num_samples=1", "model=dropped")
    layers = "model.layer_to_drop=1,3,5,7,9,10"
    for name, launcher in (("slurm", SLURM), ("here", ())):
        with swept(tmp_path / name, cluster, *jobs, layers, *launcher):
            pass
    for number in range(6):
        ours, theirs = (result(tmp_path / name, number) for name in ("slurm", "here"))
        assert ours["history"] == theirs["history"]
        assert ours["metrics"]["eval_loss"] == theirs["metrics"]["eval_loss"]
    assert len((tmp_path / "slurm" / "report.csv").read_text().splitlines()) == 7
    assert log(tmp_path / "slurm")


def test_a_preempted_job_saves_and_resumes(
    cluster: dict[str, str], undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    with swept(folder, cluster, *LONG, *SLURM, "logger=wandb"):
        wait_for(trained(folder, 10), cluster, 300)
        high = [
            "sbatch",
            "-p",
            "high",
            "-N2",
            "--exclusive",
            "-o",
            "/dev/null",
            "--wrap",
            "sleep 3",
        ]
        ask(cluster, *high)
        wait_for(lambda: "Requeued" in log(folder), cluster, 120)
        saved = sorted(int(path.name[11:]) for path in folder.rglob("checkpoint-*"))
    assert any(step % 10 for step in saved), saved
    assert "this job is preempted" in log(folder) or "this job is timed-out" in log(folder)
    assert_equal(folder, undisturbed)
    runs = [path.name for path in folder.glob("0/wandb/offline-run-*")]
    assert len(runs) == 2
    assert len({name.rpartition("-")[2] for name in runs}) == 1


def test_jobs_outlive_the_command_and_are_found_by_their_files(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    short = (*SHORT, "max_steps=2", "evaluation=none", "model=dropped", "model.layer_to_drop=3,5")
    command = [sys.executable, "-m", "train", "--multirun", f"hydra.sweep.dir={folder}", *short]
    with subprocess.Popen([*command, *SLURM], env=cluster, stderr=subprocess.DEVNULL) as process:
        wait_for((folder / "1" / "result.json").is_file, cluster, 300)
        process.kill()
    wait_for(lambda: not ask(cluster, "squeue", "-h"), cluster, 200)
    assert [result(folder, number)["status"] for number in range(2)] == ["completed"] * 2
    for path in folder.glob("report.*"):
        path.unlink()
    shown = lamina("show", folder, cwd=tmp_path, SLURM_CONF="/nowhere")
    assert shown.code == 0, shown.errors
    rows = (folder / "report.csv").read_text().splitlines()
    assert sorted(row.split(",")[2:4] for row in rows[1:]) == [
        ["completed", "model.layer_to_drop=3"],
        ["completed", "model.layer_to_drop=5"],
    ]
    again = subprocess.run(command, env=cluster, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("is already complete") == 2


def test_a_worker_checks_the_config_that_it_composes(tmp_path: Path) -> None:
    import pickle

    travelled = tmp_path / "callback.pickle"
    travelled.write_bytes(pickle.dumps(Sweep()))
    code = (
        "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'));"
        "from hydra._internal.config_loader_impl import ConfigLoaderImpl as Loader;"
        "sys.exit(not hasattr(Loader.load_configuration, '__wrapped__'))"
    )
    assert subprocess.run([sys.executable, "-c", code, travelled], check=False).returncode == 0


def test_a_job_out_of_time_saves_and_resumes(
    cluster: dict[str, str], undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    slow = {**cluster, **unwell(tmp_path, "slow")}
    with swept(folder, slow, *LONG, *SLURM, *LITTLE_TIME):
        pass
    assert "Requeued" in log(folder)
    assert_equal(folder, undisturbed)


def test_a_job_out_of_time_too_often_fails_and_resumes_when_started_again(
    cluster: dict[str, str], undisturbed: Path, tmp_path: Path
) -> None:
    folder, slow = tmp_path / "sweep", {**cluster, **unwell(tmp_path, "slow")}
    done = ended(folder, slow, *LONG, *SLURM, *LITTLE_TIME, "hydra.launcher.max_num_timeout=0")
    assert done.returncode == 1
    assert result(folder)["error"] == (
        "the job ran out of time more often than hydra.launcher.max_num_timeout allows; raise it "
        "or hydra.launcher.timeout_min: the same command with this hydra.sweep.dir resumes from "
        "the last checkpoint"
    )
    with swept(folder, cluster, *LONG, *SLURM):
        pass
    assert log(folder).count("no checkpoint to resume from: starting at the first step") == 1
    (step,) = re.findall(r"resuming from .*, after step (\d+)", log(folder))
    assert 0 < int(step) < 40
    assert_equal(folder, undisturbed)


def test_a_job_on_a_lost_node_resumes(
    cluster: dict[str, str], undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    with swept(folder, cluster, *LONG, *SLURM):
        wait_for(trained(folder, 20), cluster, 300)
        ((job, node),) = ask(cluster, "squeue", "-h", "-t", "R", "-o", "%A %N")
        pid = Path(cluster["SLURM_CONF"]).with_name(f"slurmd-{node}.pid").read_text()
        os.kill(int(pid), signal.SIGKILL)
        for pattern in (rf"slurmstepd: \[{job}", str(folder / ".submitit")):
            subprocess.run(["pkill", "-9", "-f", pattern], check=False)
        assert result(folder)["status"] == "running"
        wait_for(lambda: result(folder)["status"] == "completed", cluster, 700)
    subprocess.run(["slurmd", "-N", node], env=cluster, check=True)
    assert_equal(folder, undisturbed)


def nearly_equal(folder: Path, undisturbed: Path) -> None:
    """Expect two processes with half the accumulation to have the losses of one."""
    ours, theirs = result(folder), result(undisturbed)
    assert (ours["status"], ours["settings"]["distributed"]) == ("completed", 2)
    for mine, other in zip(ours["history"], theirs["history"], strict=True):
        assert mine == pytest.approx(other, abs=1e-5)
    assert ours["metrics"]["eval_loss"] == pytest.approx(theirs["metrics"]["eval_loss"], abs=1e-5)


TWO_NODES = ("hydra.launcher.nodes=2", "gradient_accumulation_steps=4")


def test_two_nodes_have_the_losses_of_one_process(
    cluster: dict[str, str], undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    with swept(folder, cluster, *LONG, *SLURM, *TWO_NODES):
        pass
    nearly_equal(folder, undisturbed)
    assert log(folder).count("sequences a step") == 1


def test_two_nodes_out_of_time_save_and_resume(
    cluster: dict[str, str], undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    slow = {**cluster, **unwell(tmp_path, "slow")}
    with swept(folder, slow, *LONG, *SLURM, *TWO_NODES, *LITTLE_TIME):
        pass
    assert "Requeued" in log(folder)
    nearly_equal(folder, undisturbed)


def test_a_rank_that_fails_on_the_second_node_ends_the_job_with_its_message(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    ill = {**cluster, **unwell(tmp_path, "raises")}
    done = ended(folder, ill, *LONG, *SLURM, *TWO_NODES)
    assert done.returncode == 1
    assert "1 of 1 jobs did not complete: 0 (failed)" in done.stderr
    where = f"the traceback is in {folder / '0' / 'train.log'}"
    assert result(folder)["error"] == f"rank 1: ValueError: rank one is unwell; {where}"
    wait_for(lambda: not ask(cluster, "squeue", "-h"), cluster, 30)


def test_a_sweep_without_a_job_that_can_run_is_not_submitted(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    given = (*SHORT, *SLURM, "model=dropped", "model.layer_to_drop=77,88")
    done = ended(tmp_path / "sweep", cluster, *given)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if not line.startswith(FIRST_LINES)]
    assert said == [
        *(
            f"job {number} cannot run: model.layer_to_drop={layer}, but the model has 12 "
            "layers: use 0 to 11 (0-based)"
            for number, layer in enumerate((77, 88))
        ),
        "error: no job of the sweep can run; nothing was submitted",
    ]
    assert not (tmp_path / "sweep" / ".submitit").exists()
