"""trainer=none: a run that plans, measures and writes final/, but trains nothing."""

import csv
import json
from pathlib import Path

import pytest

from tests.conftest import SHORT, Finished, lamina, train
from tests.reload import loaded


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("untrained") / "run"
    finished = train(folder, *SHORT, "trainer=none", "logger=both")
    assert finished.code == 0, finished.errors
    return finished


def test_final_is_the_reduced_model(done: Finished) -> None:
    metrics, result = done.metrics, done.result
    assert metrics["eval_loss"] == pytest.approx(metrics["reduced_eval_loss"], abs=1e-6)
    assert metrics["eval_loss"] > metrics["baseline_eval_loss"]
    assert (metrics["train_tokens"], metrics["trained_tokens"], metrics["seconds"]) == (0, 0, {})
    assert (result["name"], result["adapter"]) == ("keep-8-first-untrained", None)
    assert (result["trainable_parameters"], result["history"]) == (0, [])
    assert result["settings"]["trainer"] == "none"
    assert all(sample["after"] == sample["before"] for sample in result["samples"])
    found = loaded(done, done.final)
    assert found["loss"] == pytest.approx(metrics["eval_sample_loss"], abs=1e-5)
    assert found["layers"] == found["stack"] == 8


def test_it_leaves_no_checkpoint_and_says_that_nothing_was_trained(done: Finished) -> None:
    assert [path.name for path in done.final.parent.iterdir()] == ["final"]
    card = (done.final / "README.md").read_text()
    assert "Not healed: nothing was trained after removal." in card
    assert "learning_rate" not in card
    manifest = json.loads((done.final / "lamina.json").read_text())
    assert (manifest["adapter"], manifest["healing"]) == (None, None)
    assert manifest["evaluation"]["eval_loss"] == done.metrics["eval_loss"]
    lines = [line.split() for line in done.output.splitlines() if line.strip()]
    assert [line[-1] for line in lines if line[:2] == ["healed", "loss"]] == ["final/"]
    assert not {"training", "peak"} & {line[0] for line in lines}
    assert "first step" not in done.errors


def test_a_second_start_does_nothing(done: Finished) -> None:
    before = (done.folder / "result.json").read_bytes(), done.final.stat().st_mtime_ns
    again = train(done.folder, *SHORT, "trainer=none", "logger=both")
    assert again.code == 0, again.errors
    assert ((done.folder / "result.json").read_bytes(), done.final.stat().st_mtime_ns) == before


def test_other_settings_leave_a_finished_run_alone(done: Finished) -> None:
    before = (done.folder / "result.json").read_bytes(), done.final.stat().st_mtime_ns
    again = train(done.folder, *SHORT, "trainer=none", "logger=both", "repair=closed_form")
    assert (again.code, again.refusal) == (
        1,
        f"error: resume=auto, but {done.final} has repair=none, not closed_form: use another "
        "hydra.run.dir\n",
    )
    assert ((done.folder / "result.json").read_bytes(), done.final.stat().st_mtime_ns) == before


def test_an_export_has_its_loss_and_there_is_no_adapter(done: Finished, tmp_path: Path) -> None:
    exported = lamina("export", done.folder, "--output", "model", cwd=tmp_path)
    assert exported.code == 0, exported.errors
    assert "checked: loss" in exported.output
    refused = lamina("export", done.folder, "--output", "other", "--form=adapter", cwd=tmp_path)
    assert refused.refusal == (
        f"error: --form adapter: {done.final} has no adapter; choose --form merged\n"
    )


def test_a_sweep_compares_it_with_training(tmp_path: Path) -> None:
    quick = (*SHORT, "max_steps=2", "eval_steps=2", "save_steps=2", "evaluation.num_samples=0")
    given = ("--multirun", f"hydra.sweep.dir={tmp_path}/jobs", *quick, "trainer=none,sft")
    swept = train(tmp_path, *given)
    assert swept.code == 0, swept.errors
    with (tmp_path / "jobs" / "report.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    untrained, trained = rows["keep-8-first-untrained"], rows["keep-8-first-lora-trainer=sft"]
    assert (untrained["status"], untrained["adapter"]) == ("completed", "")
    assert untrained["reduced_loss"] == trained["reduced_loss"]
    assert float(trained["healed_loss"]) < float(untrained["healed_loss"])
