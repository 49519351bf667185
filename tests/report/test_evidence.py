"""What a report adds to the figures of runs: comparisons, noise, the spread of seeds."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamina.measure.tasks.files import Speed
from lamina.report.reading import read_report
from lamina.report.report_files import markdown
from lamina.report.tables import seed_table
from tests.measure.test_comparison import write
from tests.report.test_reading import write_result


def run(folder: Path, **changes: Any) -> Path:
    """Write a run that keeps 2 of the original's 8 right answers; its losses rise by .1."""
    write_result(folder, **changes)
    write(folder / "evaluation" / "original", [True] * 8 + [False] * 2, role="original")
    write(folder / "evaluation" / "final", [True] * 2 + [False] * 8)
    return folder


def rows_of(folder: Path, losses: np.ndarray, **changes: Any) -> Path:
    """Write a run with these losses in nats per token on its rows, of 4 tokens each."""
    ids = {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, 2, 3, 4, 5]}
    write_result(
        folder, eval_fingerprint="same", metrics={"eval_loss": float(losses.mean())}, **changes
    )
    lines = (json.dumps({**ids, "loss": float(loss)}) + "\n" for loss in losses)
    (folder / "eval.jsonl").write_text("".join(lines))
    return folder


def test_a_run_is_compared_with_the_original(tmp_path: Path) -> None:
    (row,) = read_report([run(tmp_path / "run")]).rows
    assert row.tasks["arc"]["acc"]["original"] == {
        "value": 0.8,
        "stderr": 0.1,
        "n": 10,
        "chance": 0.25,
        "higher_is_better": None,
    }
    assert row.tasks["arc"]["acc"]["final"]["value"] == 0.2
    found = row.comparisons["arc"]["acc"]
    assert (found["first"], found["second"]) == (0.8, 0.2)
    assert found["retention"] == pytest.approx(25)
    assert found["is_within_noise"] is False
    assert row.comparisons["wiki"]["loss"]["difference"] == pytest.approx(0.1)
    assert row.bytes == 36
    json.dumps(asdict(row), allow_nan=False)


BROKEN = {
    "another format": ("evaluation.json", '{"format": 2}', "format is 2, expected 1"),
    "a list": ("evaluation.json", "[1]", "expected a JSON object, found [1]"),
    "a cut last line": ("items.jsonl", ..., "arc has 9 items, expected 10"),
    "a line of text": ("items.jsonl", "\x1b[31mred\n", "row 1 cannot be read as JSON"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_evaluation_is_listed_and_the_others_stay(case: str, tmp_path: Path) -> None:
    name, content, reason = BROKEN[case]
    path = run(tmp_path / "run") / "evaluation" / "final" / name
    path.write_text(path.read_text()[:-9] if content is ... else content)
    report = read_report([tmp_path / "run"])
    assert report.rows[0].comparisons == {}
    assert "original" in report.rows[0].tasks["arc"]["acc"]
    ((place, said),) = report.broken
    assert place == str(path)
    assert said.startswith(reason)
    assert said.isprintable()


def test_another_protocol_is_listed_with_the_difference(tmp_path: Path) -> None:
    folder = write_result(tmp_path / "run")
    write(folder / "evaluation" / "original", [True] * 4, role="original")
    write(folder / "evaluation" / "final", [True] * 4, protocol={"few_shot": 5})
    report = read_report([folder])
    assert report.rows[0].comparisons == {}
    assert report.broken == [
        (
            str(folder / "evaluation" / "final" / "evaluation.json"),
            f"{name}: not comparable: few_shot is 0 and 5, file is arc.jsonl and None, "
            "template is none and None",
        )
        for name in ("arc", "wiki")
    ]
    path = folder / "evaluation" / "original" / "evaluation.json"
    content = json.loads(path.read_text())
    content["tasks"]["wiki"]["protocol"] = {"few_shot": 5}
    path.write_text(json.dumps(content))
    report = read_report([folder])
    assert len(report.broken) == 1
    assert report.rows[0].comparisons.keys() == {"wiki"}  # one task does not cost the others


def test_an_evaluation_alone_is_a_row(tmp_path: Path) -> None:
    write(tmp_path / "measured", [True, False], role="model")
    report = read_report([tmp_path / "measured"])
    (row,) = report.rows
    assert (row.name, row.status, row.layers, row.parameters) == ("measured: m", "completed", 6, 9)
    assert "| measured: m | 6 |  |  |  |  | acc 50.0 % | loss 2 | completed |" in markdown(report)
    assert row.tasks["arc"]["acc"]["final"]["value"] == 0.5


def test_a_run_without_its_model_has_not_the_size_of_the_original(tmp_path: Path) -> None:
    folder = write_result(tmp_path / "run", status="failed", num_parameters=None, dtype=None)
    write(folder / "evaluation" / "original", [True], role="original")
    assert read_report([folder]).rows[0].bytes is None


def test_rates_of_other_sizes_or_devices_do_not_compare(tmp_path: Path) -> None:
    speeds = {"few": [(1, 70.0)], "both": [(1, 80.0), (8, 500.0)], "many": [(8, 400.0)]}
    for name, device in (*((name, "cpu") for name in speeds), ("few", "gpu"), ("few", "cpu")):
        folder = run(tmp_path / f"{name} {device} {len([*tmp_path.iterdir()])}")
        path = folder / "evaluation" / "final" / "evaluation.json"
        content = json.loads(path.read_text()) | {"device": device}
        content["speed"] = [
            asdict(
                Speed(
                    batch=batch, prompt_tokens=128, new_tokens=32, prefill_tokens_per_second=1.0,
                    decode_tokens_per_second=rate, first_token_seconds=1.0, kv_cache_bytes=1,
                    peak_memory_bytes=None, repeats=1, spread=0.0,
                )
            )
            for batch, rate in speeds[name]
        ]  # fmt: skip
        path.write_text(json.dumps(content))
    report = read_report(sorted(tmp_path.iterdir(), key=lambda path: path.name[-1]))
    assert [row.decode_tokens_per_second for row in report.rows] == [70, 80, None, None, 70]
    assert [reason for _, reason in report.broken] == [
        "speed: not comparable with others, of batch 1, 128 + 32 tokens, cpu: "
        f"batch {batch}, 128 + 32 tokens, {device}"
        for batch, device in ((8, "cpu"), (1, "gpu"))
    ]


def test_runs_within_noise_of_the_best_are_marked(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    losses = generator.normal(2, 0.5, 100)
    varied = generator.normal(0, 0.2, 100)
    rises = {"best": 0.0, "near": varied - varied.mean() + 0.01, "far": 0.1}
    folders = [rows_of(tmp_path / name, losses + rise) for name, rise in rises.items()]
    other = rows_of(tmp_path / "other", losses + 1)
    path = other / "result.json"
    path.write_text(path.read_text().replace('"same"', '"other"'))
    without = write_result(tmp_path / "without", eval_fingerprint="same", metrics={"eval_loss": 9})
    rows = read_report([*folders, other, without]).rows
    marks = {Path(row.folder).name: row.within_noise_of_best for row in rows}
    assert marks == {"best": True, "near": True, "far": False, "other": None, "without": None}
    expected = losses.std(ddof=1) / 10
    assert rows[0].healed_stderr == pytest.approx(expected)


def repeated(folder: Path, layer: int, seed: int, right: int, **metrics: float) -> None:
    """Write a job of a sweep with so many of 50 right answers."""
    overrides = ["experiment=quickstart", f"model.layer_to_drop={layer}", f"seed={seed}"]
    write_result(folder, overrides=overrides, metrics=metrics)
    write(folder / "evaluation" / "final", [True] * right + [False] * (50 - right))


def test_settings_are_compared_over_their_seeds(tmp_path: Path) -> None:
    runs = [(1, 1, 40, 2.0), (1, 2, 42, 2.2), (1, 3, 44, 2.4)]  # layer, seed, right answers, loss
    runs += [(2, seed, 40 - seed, 2.3) for seed in (1, 2, 3)]
    runs += [(3, seed, 10, 4.0 + seed / 10) for seed in (1, 2, 3)]
    runs += [(4, 1, 50, 1.0)]
    for number, (layer, seed, right, loss) in enumerate(runs):
        place = tmp_path / "jobs" / str(number)
        repeated(place, layer, seed, right, eval_loss=loss, train_seconds=10.0 * layer)
    rows = read_report([tmp_path / "jobs"]).rows
    assert [bool(row.seed_spread) for row in rows] == [True] * 9 + [False]
    first, second, third = (rows[place].seed_spread for place in (0, 3, 6))
    assert first["healed_loss"] == pytest.approx(
        {"runs": 3, "mean": 2.2, "spread": 0.2, "half_width": 4.30265 * 0.2 / 3**0.5}
        | {"standing": "best"}
    )
    assert second["healed_loss"]["standing"] == "within noise of the best"
    assert third["healed_loss"]["standing"] is None
    assert first["arc/acc"]["standing"] == "best"
    assert second["arc/acc"]["standing"] == "within noise of the best"
    assert third["arc/acc"]["standing"] is None
    assert third["arc/acc"]["spread"] == 0
    assert third["arc/acc"]["half_width"] == pytest.approx(2.0095752 * (0.2 * 0.8 / 49) ** 0.5)
    costs = [each["train_seconds"]["standing"] for each in (first, second, third)]
    assert costs == ["best", None, None]


def test_equal_settings_of_two_sweeps_stay_two(tmp_path: Path) -> None:
    for number in range(4):
        sweep = tmp_path / f"{number // 2}" / "jobs"
        repeated(sweep / str(number % 2), 1, number, 25, eval_loss=1.0 + number // 2)
    rows = read_report([tmp_path / "0" / "jobs", tmp_path / "1" / "jobs"]).rows
    shown = [line[:3] for line in seed_table(rows)[1:]]
    assert shown == [["0/jobs: all runs", "2", "1 ± 0"], ["1/jobs: all runs", "2", "2 ± 0"]]


def test_settings_with_other_items_or_rows_are_not_compared(tmp_path: Path) -> None:
    """Of layers 0 to 4, the last two have other items and rows than the first two, one its own."""
    for number, right in enumerate((20, 10, 40, 30, 50)):
        for seed in (0, 1):
            place = tmp_path / "jobs" / f"{2 * number + seed}"
            repeated(place, number, seed, right, eval_loss=5.0 - number)
            for name, old in (("evaluation/final/evaluation.json", "a" * 64), ("result.json", "{")):
                path, new = place / name, f"{number // 2}" * 64
                new = new if old != "{" else f'{{"eval_fingerprint": "{new}", '
                path.write_text(path.read_text().replace(old, new, 1))
    rows = read_report([tmp_path / "jobs"]).rows[::2]
    for name, best in (("arc/acc", [0, 2]), ("healed_loss", [1, 3])):
        standings = [row.seed_spread[name]["standing"] for row in rows]
        assert [place for place, mark in enumerate(standings) if mark] == best


def test_rows_of_a_run_that_did_not_reload_final_have_no_losses(tmp_path: Path) -> None:
    folder = rows_of(tmp_path / "run", np.ones(5))
    path = folder / "eval.jsonl"
    path.write_text(path.read_text().replace(', "loss": 1.0', ""))
    report = read_report([folder])
    assert report.broken == []
    assert report.rows[0].is_best


def test_runs_have_a_standing_in_each_task(tmp_path: Path) -> None:
    right = {"best": 40, "near": 38, "far": 10}
    for name, number in right.items():
        folder = write_result(tmp_path / name)
        write(folder / "evaluation" / "final", [True] * number + [False] * (50 - number))
    other = write_result(tmp_path / "other")
    write(other / "evaluation" / "final", [True] * 45 + [False] * 5, protocol={"few_shot": 5})
    write(tmp_path / "another", [False] * 50, role="model", protocol={"few_shot": 5})
    alone = tmp_path / "alone"
    write(alone, [True] * 50, role="model", protocol={"few_shot": 1})
    write(tmp_path / "measured", [True] * 39 + [False] * 11, role="model")
    names = (*right, "other", "another", "alone", "measured")
    report = read_report([tmp_path / name for name in names])
    rows = report.rows
    assert [row.standings.get("arc", {}).get("acc") for row in rows] == [
        "best",
        "within noise of the best",
        None,
        "best",
        None,
        None,
        "within noise of the best",
    ]
    assert report.broken == [
        (
            str(folder / "evaluation.json"),
            f"{name}: not comparable with others: few_shot is 0 and {shots}, file is arc.jsonl "
            f"and None, template is none and None{more}",
        )
        for name in ("arc", "wiki")
        for folder, shots, more in (
            (other / "evaluation" / "final", 5, " (and 1 more)"),
            (alone, 1, ""),
        )
    ]
    assert rows[0].standings["wiki"]["loss"] == "best"
    assert rows[1].standings["wiki"]["loss"] == "within noise of the best"
    assert read_report([tmp_path / "best"]).rows[0].standings == {}
