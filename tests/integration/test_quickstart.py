"""The main job on the embedded model: its losses, and a final/ that plain transformers loads."""

from pathlib import Path

import pytest

from tests.conftest import Finished, lamina, train
from tests.reload import loaded

FEWER = ("max_steps=20", "eval_steps=20", "save_steps=20")
CASES = {
    "quickstart": (),
    "adapter": FEWER,
    "merged": ("export.form=merged", *FEWER),
    "full": ("adapter=full", *FEWER),
    "dropped": ("model=dropped", "model.layer_to_drop=5", *FEWER),
    "original": ("model=original", *FEWER),
}
"""The whole job once; the others heal enough to compare them."""

LAYERS = {"dropped": 11, "original": 12}
"""8 in the other cases."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    folder = tmp_path_factory.mktemp("quickstart")
    return {
        name: train(folder / name, "experiment=quickstart", *overrides)
        for name, overrides in CASES.items()
    }


@pytest.mark.parametrize("case", CASES)
def test_the_run_completes_and_shows_its_losses(case: str, runs: dict[str, Finished]) -> None:
    run = runs[case]
    assert run.code == 0, run.errors
    assert run.result["status"] == "completed"
    for name in ("baseline loss", "reduced loss", "healed loss"):
        assert name in run.output
    assert all(sample["after"] is not None for sample in run.result["samples"])
    assert len(run.result["samples"]) == 5


@pytest.mark.parametrize("case", [case for case in CASES if case != "original"])
def test_removal_costs_and_healing_helps(case: str, runs: dict[str, Finished]) -> None:
    metrics = runs[case].metrics
    assert metrics["baseline_eval_loss"] < metrics["eval_loss"] < metrics["reduced_eval_loss"]


def test_the_original_loses_nothing_before_training(runs: dict[str, Finished]) -> None:
    metrics = runs["original"].metrics
    assert metrics["reduced_eval_loss"] == metrics["baseline_eval_loss"]


@pytest.mark.parametrize("case", CASES)
def test_plain_transformers_loads_final_and_gets_its_loss(
    case: str, runs: dict[str, Finished]
) -> None:
    found = loaded(runs[case], runs[case].final)
    assert found["loss"] == pytest.approx(runs[case].metrics["eval_sample_loss"], abs=1e-3)
    assert found["layers"] == found["stack"] == LAYERS.get(case, 8)


def test_every_variant_is_measured_on_the_same_rows(runs: dict[str, Finished]) -> None:
    assert len({run.result["eval_fingerprint"] for run in runs.values()}) == 1
    assert len({run.metrics["baseline_eval_loss"] for run in runs.values()}) == 1


def test_the_merged_model_answers_like_the_adapter(runs: dict[str, Finished]) -> None:
    adapter, merged = runs["adapter"], runs["merged"]
    assert merged.result["samples"] == adapter.result["samples"]
    assert merged.metrics["eval_loss"] == pytest.approx(adapter.metrics["eval_loss"], abs=1e-5)
    assert (merged.final / "config.json").is_file()
    assert not (adapter.final / "config.json").exists()


@pytest.mark.parametrize(("dtype", "apart"), [("float32", 1e-5), ("bfloat16", 5e-3)])
def test_an_export_has_the_adapters_loss_and_answers(
    dtype: str, apart: float, runs: dict[str, Finished], tmp_path: Path
) -> None:
    run = runs["quickstart"]
    done = lamina("export", run.folder, "--output", "model", "--dtype", dtype, cwd=tmp_path)
    assert done.code == 0, done.errors
    assert "checked: loss" in done.output
    found = loaded(run, tmp_path / "model", dtype)
    assert found["loss"] == pytest.approx(run.metrics["eval_sample_loss"], abs=apart)
    assert found["layers"] == found["stack"] == 8
    if dtype == "float32":
        assert found["answers"] == loaded(run, run.final)["answers"]
