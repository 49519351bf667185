"""A report's rows, read from files that may be half-written, damaged or hostile."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lamina.errors import ConfigError, ModelError
from lamina.report.reading import read_report
from lamina.report.runs import Report

RESULT: dict[str, Any] = {
    "status": "completed",
    "error": None,
    "name": "drop-3-lora",
    "model_type": "dropped",
    "num_layers": 6,
    "kept_layers": [0, 1, 2, 4, 5],
    "selector": None,
    "adapter": "lora",
    "num_parameters": 1000,
    "trainable_parameters": 10,
    "overrides": ["experiment=quickstart", "model.layer_to_drop=3"],
    "settings": {"adapter.r": 16},
    "final": "checkpoints/dropped/final",
    "dtype": "bfloat16",
    "seed": 7,
    "history": [{"step": 1, "tokens": 5, "loss": 2.0, "learning_rate": 0.1, "eval_loss": None}],
    "samples": [{"prompt": "a", "expected": "b", "before": "c", "after": "d"}],
    "provenance": {"backend": "transformers"},
    "metrics": {
        "baseline_eval_loss": 1.0,
        "reduced_eval_loss": 3.0,
        "eval_loss": 1.5,
        "perplexity": 4.48,
        "tokens_per_second": 100.0,
        "train_seconds": 2.0,
        "trained_tokens": 200,
        "seconds": {"data": 1.0},
        "peak_memory_bytes": 4096,
    },
}


def write_result(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {**RESULT["metrics"], **changes.pop("metrics", {})}
    content = {**RESULT, **changes, "metrics": metrics}
    (folder / "result.json").write_text(json.dumps(content))
    return folder


def test_a_row_has_the_figures_of_its_result(tmp_path: Path) -> None:
    (row,) = read_report([write_result(tmp_path / "run")]).rows
    shown = {
        "name": "drop-3-lora",
        "folder": str(tmp_path / "run"),
        "sweep": None,
        "status": "completed",
        "dropped_layers": [3],
        "layers": 5,
        "num_layers": 6,
        "backend": "transformers",
        "seed": 7,
        "parameters": 1000,
        "bytes": 2000,
        "baseline_loss": 1.0,
        "reduced_loss": 3.0,
        "healed_loss": 1.5,
        "difference": 0.5,
        "recovered": 0.75,
        "trained_tokens": 200,
        "rank": 1,
        "is_best": True,
    }
    found = asdict(row)
    assert {key: found[key] for key in shown} == shown
    assert row.config == {
        "adapter.r": 16,
        "experiment": "quickstart",
        "model.layer_to_drop": "3",
    }
    assert row.history == RESULT["history"]
    json.dumps(found)


def sweep(folder: Path) -> Report:
    """Read a sweep of five: two completed, one failed, one half-written, one missing."""
    for number, loss in ((0, 1.7), (1, 1.2)):
        own = ["experiment=quickstart", f"model.layer_to_drop={number}"]
        write_result(
            folder / str(number), name=f"drop-{number}", overrides=own, metrics={"eval_loss": loss}
        )
    write_result(folder / "2", status="failed", error="no such layer\nmore", metrics={})
    (folder / "3").mkdir()
    (folder / "3" / "result.json").write_text('{"status": "comp')
    (folder / "multirun.yaml").touch()
    planned = [["experiment=quickstart", f"model.layer_to_drop={number}"] for number in range(5)]
    return read_report([folder], lambda _: planned)


def test_a_sweep_has_every_job_and_why_one_did_not_complete(tmp_path: Path) -> None:
    report = sweep(tmp_path / "jobs")
    assert [(row.job, row.name, row.status, row.rank) for row in report.rows] == [
        ("0", "drop-0", "completed", 2),
        ("1", "drop-1", "completed", 1),
        ("2", "drop-3-lora", "failed", None),
        ("3", "model.layer_to_drop=3", "damaged", None),
        ("4", "model.layer_to_drop=4", "missing", None),
    ]
    assert [row.job for row in report.ranked] == ["1", "0", "2", "3", "4"]
    assert report.rows[2].error == "no such layer"
    assert {row.sweep for row in report.rows} == {str(tmp_path / "jobs")}
    ((path, reason),) = report.broken
    assert path == str(tmp_path / "jobs" / "3" / "result.json")
    assert reason.startswith("cannot be read as JSON: Unterminated string")
    assert (report.title, len(report.rows), report.done_jobs) == ("jobs", 5, 4)
    assert not report.is_finished


DAMAGED: dict[str, tuple[Any, str]] = {
    "a list": ([1], "expected a JSON object, found [1]"),
    "layers of text": ({**RESULT, "kept_layers": ["a"]}, "kept_layers are not of 6 layers"),
    "a layer beyond": ({**RESULT, "kept_layers": [6]}, "kept_layers are not of 6 layers"),
    "a trillion layers": (
        {**RESULT, "num_layers": 10**12},
        "kept_layers are not of 1000000000000 layers",
    ),
    "a sample that is text": ({**RESULT, "samples": ["x"]}, "samples: expected a JSON object"),
    "a history of lists": ({**RESULT, "history": [[1]]}, "history: expected a JSON object"),
    "a loss that is an object": (
        {**RESULT, "metrics": {"eval_loss": {}}},
        "metrics: eval_loss is {}, expected",
    ),
    "a backend that is a number": (
        {**RESULT, "provenance": {"backend": 5}},
        "provenance: backend is 5, expected str",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_result_is_listed_with_the_reason(case: str, tmp_path: Path) -> None:
    content, reason = DAMAGED[case]
    (tmp_path / "result.json").write_text(json.dumps(content))
    report = read_report([tmp_path])
    assert [row.status for row in report.rows] == ["damaged"]
    assert reason in report.rows[0].error
    assert report.broken == [(str(tmp_path / "result.json"), report.rows[0].error)]


def test_no_text_of_a_row_has_control_characters(tmp_path: Path) -> None:
    escape = "\x1b[31m\ud800<script>"
    folder = write_result(tmp_path / "run", name=escape, settings={escape: [escape]})
    (row,) = read_report([folder]).rows
    assert row.name == r"\x1b[31m\ud800<script>"
    assert "\\\\x1b" in json.dumps(asdict(row))
    assert "\\u001b" not in json.dumps(asdict(row))


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 10**400])
def test_figures_out_of_range_are_not_measured(loss: float, tmp_path: Path) -> None:
    (row,) = read_report([write_result(tmp_path, metrics={"eval_loss": loss})]).rows
    assert (row.healed_loss, row.difference, row.rank, row.is_best) == (None, None, None, False)


def test_jobs_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for job in ("²", "10", "9", "copy"):
        write_result(tmp_path / job, name=job)
    assert [row.name for row in read_report([tmp_path]).rows] == ["9", "10", "copy", "²"]


def test_a_damaged_file_of_a_sweep_is_listed(tmp_path: Path) -> None:
    write_result(tmp_path / "0")
    path = tmp_path / "multirun.yaml"
    path.touch()

    def planned(_: Path) -> list[list[str]]:
        raise ModelError(f"{path}: damaged")

    report = read_report([tmp_path], planned)
    assert len(report.rows) == 1
    assert report.broken == [(str(path), "damaged")]


def test_a_logged_entry_without_a_step_is_left_out(tmp_path: Path) -> None:
    logged = {"step": 3, "tokens": 9, "loss": 1.5, "learning_rate": 0.1, "eval_loss": 2.0}
    entries = [{"eval_loss": 1.0}, {"step": 2, "eval_loss": None}, logged]
    (row,) = read_report([write_result(tmp_path / "run", history=entries)]).rows
    empty = dict.fromkeys(("tokens", "loss", "learning_rate", "eval_loss"))
    assert row.history == [{"step": 2, **empty}, logged]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for place in ("first/0", "second/0", "second/1"):
        write_result(tmp_path / place, name="drop-0" if place.endswith("0") else "drop-1")
    rows = read_report([tmp_path / "first", tmp_path / "second"]).rows
    assert [row.name for row in rows] == ["drop-0 (first/0)", "drop-0 (second/0)", "drop-1"]


def test_a_folder_that_is_given_twice_is_read_once(tmp_path: Path) -> None:
    write_result(tmp_path / "sweep" / "0")
    (tmp_path / "link").symlink_to(tmp_path / "sweep")
    given = ("sweep", "sweep/../sweep", "link", "link/0", "sweep/0")
    assert len(read_report([tmp_path / name for name in given]).rows) == 1


def test_a_damaged_scan_is_listed(tmp_path: Path) -> None:
    (tmp_path / "scan.json").write_text('{"num_layers": 3}')
    report = read_report([tmp_path])
    assert (report.rows, report.scans) == ([], [])
    ((path, reason),) = report.broken
    assert path == str(tmp_path / "scan.json")
    assert reason.startswith("damaged, or of another version (")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("nowhere", "no such folder"), ("empty", "holds no run, sweep, scan or evaluation")],
)
def test_a_folder_without_anything_of_ours_is_refused(
    name: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=f"{name}: {reason}"):
        read_report([tmp_path / name])
