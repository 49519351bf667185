"""Sweeps: failing jobs, a second start, and the report."""

import csv
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from lamina.measure.results import read_result
from lamina.report.reading import read_report
from lamina.report.report_files import write_report
from lamina.report.sweep_table import SweepTable
from tests.conftest import SHORT, Finished, lamina, run, train

LAYERS = (3, 77, 1, 5, 9)
QUICK = (*SHORT, "max_steps=1", "eval_steps=1", "save_steps=1", "evaluation.num_samples=1")


def sweep(folder: Path, *overrides: str) -> Finished:
    """Run five jobs, one of which drops a layer that the model does not have."""
    layers = f"model.layer_to_drop={','.join(map(str, LAYERS))}"
    given = ("--multirun", f"hydra.sweep.dir={folder}", *QUICK, "model=dropped", layers)
    return train(folder.parent, *given, *overrides)


def results(folder: Path) -> list[dict[str, Any]]:
    return [read_result(folder / str(number)) or {} for number in range(len(LAYERS))]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Path]:
    folder = tmp_path_factory.mktemp("sweep") / "jobs"
    return sweep(folder), folder


def test_a_failing_job_is_recorded_and_the_others_run(swept: tuple[Finished, Path]) -> None:
    done, folder = swept
    assert done.code == 1
    statuses = [result["status"] for result in results(folder)]
    assert statuses == ["completed", "failed", "completed", "completed", "completed"]
    reason = "model.layer_to_drop=77, but the model has 12 layers: use 0 to 11 (0-based)"
    assert results(folder)[1]["error"] == reason
    assert f"error in job 1: {reason}" in done.errors
    said, _, command = done.errors.splitlines()[-1].partition(" to run only these again: ")
    assert said == "error: 1 of 5 jobs did not complete: 1 (failed);"
    assert command.endswith(f" hydra.sweep.dir={folder.parent.name}/{folder.name}")
    assert "Traceback" not in done.errors
    assert "Error executing job" not in done.errors
    assert "HYDRA_FULL_ERROR" not in done.errors
    assert "sweep of 5 jobs: 1 done, 1 running, about " in done.errors
    assert "sweep of 5 jobs: 2 done, 1 running, 1 failed, about " in done.errors
    assert "sweep of 5 jobs: 4 done, 1 failed\n" in done.errors


def test_the_untouched_model_is_evaluated_once(tmp_path: Path) -> None:
    given = (*QUICK, "model=dropped")
    pair = [
        train(tmp_path / name, *given, f"model.layer_to_drop={name}", LAMINA_CACHE=str(tmp_path))
        for name in ("3", "5")
    ]
    assert [done.code for done in pair] == [0, 0]
    assert [done.errors.count(", untouched") for done in pair] == [1, 0]
    apart = train(tmp_path / "apart", *given, LAMINA_CACHE=str(tmp_path / "another"))
    losses = {done.metrics["baseline_eval_loss"] for done in (*pair, apart)}
    assert len(losses) == 1
    other = train(tmp_path / "other", *given, "generator.seed=5", LAMINA_CACHE=str(tmp_path))
    assert other.errors.count(", untouched") == 1


def test_the_report_ranks_the_jobs(swept: tuple[Finished, Path]) -> None:
    _, folder = swept
    with (folder / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["healed_loss"]) for row in rows[:-1]]
    assert losses == sorted(losses)
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", ""]
    assert {row["overrides"] for row in rows} == {f"model.layer_to_drop={i}" for i in LAYERS}
    assert (rows[-1]["status"], rows[-1]["job"]) == ("failed", "1")
    for row in rows[:-1]:
        assert row["backend"] == "transformers"
        above = float(row["healed_loss"]) - float(row["baseline_loss"])
        assert float(row["difference"]) == pytest.approx(above)
    assert [row["name"] for row in rows[:-1]] == [
        f"drop-{row['overrides'].partition('=')[2]}-lora" for row in rows[:-1]
    ]
    assert rows[0]["within_noise_of_best"] == "True"
    lines = (folder / "report.md").read_text().splitlines()
    at = lines.index("## Runs")
    assert lines[at + 4].startswith(f"| \\* {rows[0]['name']} | 11 of 12 |")
    assert lines[at + 9] == ""
    reason = lines[lines.index("## Not completed") + 4]
    assert reason.startswith(
        r"| model.layer\_to\_drop=77 | failed | model.layer\_to\_drop=77, but "
    )
    assert {each for each in folder.iterdir() if each.name.startswith("summary")} == set()


def test_the_table_has_the_best_job_first_and_a_column_of_statuses(
    swept: tuple[Finished, Path],
) -> None:
    done, folder = swept
    with (folder / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    lines = [line.split() for line in done.output.splitlines() if line.strip()]
    head = lines.index(["job", "layers", "original", "reduced", "healed", "difference", "status"])
    shown = lines[head + 1 : head + 6]
    assert shown[0].pop(0) == "*"
    assert [cells[0] for cells in shown[:4]] == [row["name"] for row in rows[:4]]
    assert [cells[-1] for cells in shown] == ["completed"] * 4 + ["failed"]
    assert ["*", "lowest", "healed", "loss;"] in [line[:4] for line in lines]


def test_a_second_start_runs_only_incomplete_jobs(swept: tuple[Finished, Path]) -> None:
    _, folder = swept
    files = [folder / n / "result.json" for n in "0234"]
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in files]
    done = sweep(folder)
    assert done.code == 1
    assert [(path.stat().st_mtime_ns, path.read_bytes()) for path in files] == before
    told = [line for line in done.errors.splitlines() if line.endswith("is already complete")]
    assert told == [f"job {number} is already complete" for number in (0, 2, 3, 4)]
    assert "error in job 1:" in done.errors


def test_a_folder_of_a_job_with_other_settings_is_refused(swept: tuple[Finished, Path]) -> None:
    _, folder = swept
    done = sweep(folder, "learning_rate=1e-3", "model.layer_to_drop=3")
    assert done.code == 1
    assert "has trainer.args.learning_rate=0.002, not 0.001: use another" in done.errors
    assert results(folder)[0]["status"] == "completed"


def test_jobs_without_a_result_are_missing(tmp_path: Path) -> None:
    (tmp_path / "multirun.yaml").touch()
    report = read_report([tmp_path], lambda _: [["a=1", "b=1"], ["a=1", "b=2"]])
    assert [(row.job, row.own, row.name, row.status) for row in report.rows] == [
        ("0", ["b=1"], "b=1", "missing"),
        ("1", ["b=2"], "b=2", "missing"),
    ]
    write_report(report, tmp_path)
    assert (tmp_path / "report.csv").read_text().splitlines()[1].startswith(",0,missing,b=1,b=1,")
    assert SweepTable(report.rows)


def test_a_sweep_over_experiments_by_glob_is_closed_and_shown(tmp_path: Path) -> None:
    """No job can run, so the test is short; flags stand between the overrides."""
    experiments, folder = tmp_path / "conf" / "experiment", tmp_path / "jobs"
    experiments.mkdir(parents=True)
    for name in ("mine_a", "mine_b"):
        (experiments / f"{name}.yaml").write_text(
            "# @package _global_\ndefaults:\n  - quickstart\n\ndepth: {keep_layers: 99}\n"
        )
    flags = ("--multirun", "--config-dir", experiments.parent)
    given = ("experiment=glob(mine_*)", *flags, "seed=1,2", f"hydra.sweep.dir={folder}")
    done = run("-m", "train", *given, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        "error: 4 of 4 jobs did not complete: 0 (failed), 1 (failed), 2 (failed), 3 (failed); "
    )
    names = [f"experiment=mine_{name} seed={seed}" for name in "ab" for seed in (1, 2)]
    with (folder / "report.csv").open() as file:
        assert [row["overrides"] for row in csv.DictReader(file)] == names
    (folder / "3" / "result.json").unlink()
    shown = lamina("show", folder, cwd=tmp_path, COLUMNS="200")
    assert shown.code == 0, shown.errors
    assert all(name in shown.output for name in names)


def test_show_says_why_a_job_failed(swept: tuple[Finished, Path], tmp_path: Path) -> None:
    _, folder = swept
    reason = results(folder)[1]["error"]
    shown = lamina("show", folder, cwd=tmp_path, COLUMNS="200")
    assert f"model.layer_to_drop={LAYERS[1]}: {reason}\n" in shown.output


UNTABLED = """
from lamina.commands import train
from lamina.report import run_summary

def summary(*_):
    raise TypeError("no table")

run_summary.summary = summary
train.main()
"""

UNLAUNCHED = """
from hydra.core.plugins import Plugins
from lamina.commands import train

def launcher(*_, **__):
    raise RuntimeError("no scheduler")

Plugins.instantiate_launcher = launcher
train.main()
"""


def test_an_error_after_a_job_has_completed_ends_the_sweep_by_name(tmp_path: Path) -> None:
    given = ("--multirun", f"hydra.sweep.dir={tmp_path / 'jobs'}", *QUICK, "seed=1,2")
    done = run("-c", UNTABLED, *given, "evaluation=none", cwd=tmp_path)
    assert done.returncode == 1
    assert [read_result(tmp_path / "jobs" / n)["status"] for n in "01"] == ["completed"] * 2
    last = [line.partition("; the traceback is in ")[0] for line in done.stderr.splitlines()[-2:]]
    assert last == ["error: job 0: TypeError: no table", "job 1: TypeError: no table"]
    (log,) = (tmp_path / "jobs" / "0").glob("*.log")
    assert log.read_text().endswith(", in summary\nTypeError: no table\n")


def test_what_ended_a_sweep_stands_above_its_report(tmp_path: Path) -> None:
    folder = tmp_path / "jobs"
    given = ("--multirun", f"hydra.sweep.dir={folder}", *QUICK, "seed=1,2")
    done = run("-c", UNLAUNCHED, *given, cwd=tmp_path)
    assert done.returncode == 1
    said, _, command = done.stderr.partition("; to run only these again: ")
    assert said.splitlines()[-2:] == [
        "error: RuntimeError: no scheduler",
        "2 of 2 jobs did not complete: 0 (missing), 1 (missing)",
    ]
    rest = [*given[:1], *given[2:], "hydra.sweep.dir=jobs"]
    assert shlex.split(command) == [sys.executable, "-c", UNLAUNCHED, *rest]


KNOWN_BEFORE = {
    ("output_dir=shared", "seed=1,2"): "output_dir=shared: jobs 0 and 1 would share it: set "
    "'output_dir=\"${run_dir}/checkpoints\"'",
    ("output_dir=${run_dir}/../a", "seed=1,2", "hydra.sweep.dir=jobs"): "output_dir=jobs/1/../a: "
    "jobs 0 and 1 would share it: set 'output_dir=\"${run_dir}/checkpoints\"'",
    ("seed=1", "output_dir=a,a"): "output_dir=a: jobs 0 and 1 would share it: set "
    "'output_dir=\"${run_dir}/checkpoints\"'",
    ("selector=first,greedy", "scan.tokens=500"): "job 1: scan.tokens=500 is less than one window "
    "of max_seq_length=512 tokens: use more tokens or a shorter window",
    ("seed=1,2", "hydra.sweep.subdir=job-${hydra.job.num}"): "hydra.sweep.subdir="
    "job-${hydra.job.num}: leave it out: a job's folder is its number",
    ("hydra/launcher=slurm", "seed=1,2"): 'hydra/launcher=slurm: Could not detect "srun", are you '
    "indeed on a slurm cluster?",
}


@pytest.mark.parametrize("given", KNOWN_BEFORE)
def test_what_is_known_before_the_first_job_is_said_before_it(
    given: tuple[str, ...], tmp_path: Path
) -> None:
    done = train(tmp_path / "run", "--multirun", *SHORT, *given, PATH="")
    assert (done.code, done.errors) == (1, f"error: {KNOWN_BEFORE[given]}\n")
    assert not list(tmp_path.rglob("result.json"))


def test_bad_items_are_refused_before_a_job_is_queued(tmp_path: Path) -> None:
    for tool in ("srun", "sbatch"):
        path = tmp_path / tool
        path.write_text(f"#!/bin/sh\ntouch {tmp_path / 'queued'}\nexit 1\n")
        path.chmod(0o755)
    item = {"context": "a", "choices": ["b", "c"], "label": 2}
    (tmp_path / "items.jsonl").write_text(json.dumps(item))
    given = ("hydra/launcher=slurm", "evaluation.tasks=[items.jsonl],[itms.jsonl]")
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = train(tmp_path / "run", "--multirun", *SHORT, *given, PATH=path)
    assert done.code == 1
    assert done.errors.splitlines()[1:] == [
        "job 0 cannot run: evaluation.tasks=items.jsonl, row 1: label is 2, expected 0 to 1",
        "job 1 cannot run: evaluation.tasks=itms.jsonl: no such file; did you mean items.jsonl?",
        "error: no job of the sweep can run; nothing was submitted",
    ]
    assert not (tmp_path / "queued").exists()


LINES = {"hydra.launcher.account": "lab\ntouch queued #", "hydra.sweep.dir": "a\ntouch queued\n"}


@pytest.mark.parametrize("key", LINES)
def test_no_value_begins_a_line_of_the_script_for_sbatch(key: str, tmp_path: Path) -> None:
    for tool in ("srun", "sbatch"):
        (tmp_path / tool).symlink_to("/bin/true")
    _, group, last = key.split(".")
    own = json.dumps({"hydra": {group: {last: LINES[key]}}})
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    content = f"# @package _global_\ndefaults: [quickstart]\n{own[1:-1]}\n"
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(content)
    given = ("experiment=mine", "hydra/launcher=slurm", "seed=1,2", "hydra.run.dir=run")
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    command = ("-m", "train", "--multirun", "--config-dir=conf", *given)
    done = run(*command, cwd=tmp_path, PATH=path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: hydra.launcher.")
    assert done.stderr.endswith(": use one line\n")


def test_jobs_of_two_variants_may_share_an_output_dir(tmp_path: Path) -> None:
    variants = ("model=dropped,pruned", "model_name=nowhere", "output_dir=shared")
    done = train(tmp_path / "run", "--multirun", *SHORT, *variants)
    assert "would share it" not in done.errors
