"""repair by the real command: what it wins back, what it leaves, and the same after a resume."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import SHORT, Finished, lamina, train
from tests.reload import loaded

UNTRAINED = (*SHORT, "trainer=none", "evaluation.num_samples=0")
SCATTERED = ("selector=uniform", "model.keep_layers=8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    folder = tmp_path_factory.mktemp("repair")
    cases = {
        "none": UNTRAINED,
        "closed_form": (*UNTRAINED, "repair=closed_form"),
        "scattered": (*UNTRAINED, *SCATTERED),
        "magnitude": (*UNTRAINED, *SCATTERED, "repair=magnitude"),
    }
    found = {name: train(folder / name, *given) for name, given in cases.items()}
    assert {name: done.code for name, done in found.items()} == dict.fromkeys(cases, 0)
    return found


def test_a_closed_form_lowers_the_loss_without_training(runs: dict[str, Finished]) -> None:
    plain, done = runs["none"], runs["closed_form"]
    assert done.metrics["reduced_eval_loss"] == plain.metrics["reduced_eval_loss"]
    assert done.metrics["eval_loss"] < 0.6 * plain.metrics["eval_loss"]
    assert done.result["name"] == "keep-8-first-closed_form-untrained"
    assert done.result["settings"]["repair"] == "closed_form"
    (cut,) = done.result["repair"]["cuts"]
    assert (cut["removed"], cut["layer"]) == ([8, 12], 7)
    assert cut["error_after"] < 0.5 * cut["error_before"]
    assert done.result["repair"]["method"] == "closed_form"
    assert plain.result["repair"] is None
    assert loaded(done, done.final)["loss"] == pytest.approx(
        done.metrics["eval_sample_loss"], abs=1e-5
    )
    line = (
        "layer 7 before [8, 12): relative squared error of the hidden states "
        f"{cut['error_before']:.3g}, now {cut['error_after']:.3g}"
    )
    assert f"repaired: {line}\n" in done.errors
    assert f"- repaired (closed_form): {line}\n" in (done.final / "README.md").read_text()
    repair = done.result["repair"]
    row = [" ".join(each.split()) for each in done.output.splitlines() if each[:7] == "repair "]
    about = f"{repair['tokens']:,} calibration tokens, {repair['seconds']:.1f} s"
    assert row == [f"repair closed_form {about}"]
    assert repair["seconds"] > 0


def test_magnitudes_of_scattered_cuts_lower_it_too(runs: dict[str, Finished]) -> None:
    plain, done = runs["scattered"], runs["magnitude"]
    assert done.metrics["eval_loss"] < plain.metrics["eval_loss"]
    factors = [cut["factor"] for cut in done.result["repair"]["cuts"]]
    assert len(factors) > 1
    assert min(factors) > 1


def test_only_the_projection_before_the_cut_is_other(runs: dict[str, Finished]) -> None:
    from safetensors.torch import load_file

    plain, done = (
        load_file(runs[name].final / "model.safetensors") for name in ("none", "closed_form")
    )
    assert {name for name in plain if not plain[name].equal(done[name])} == {
        "model.layers.7.mlp.down_proj.weight"
    }


@pytest.fixture(scope="module")
def healed(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("healed")
    given = (*SHORT, "repair=closed_form", "evaluation.num_samples=0")
    done = train(folder / "run", *given, LAMINA_CACHE=str(folder / "cache"))
    assert done.code == 0, done.errors
    return done


def test_an_adapter_on_a_repaired_base_is_merged(healed: Finished, tmp_path: Path) -> None:
    assert (healed.final / "model.safetensors").is_file()
    assert not (healed.final / "adapter_config.json").exists()
    found = loaded(healed, healed.final)
    assert found["loss"] == pytest.approx(healed.metrics["eval_sample_loss"], abs=1e-5)
    refused = lamina("export", healed.folder, "--output", "out", "--form=adapter", cwd=tmp_path)
    assert refused.refusal == (
        "error: --form adapter: repair=closed_form changed the base, which an adapter alone cannot "
        "rebuild; choose --form merged\n"
    )


def test_a_resumed_run_repairs_in_the_same_way(healed: Finished, tmp_path: Path) -> None:
    """In a cache of its own, so that the repair is found again."""
    folder = shutil.copytree(healed.folder, tmp_path / "run")
    whole = healed.result
    shutil.rmtree(folder / whole["final"])
    shutil.rmtree(folder / "checkpoints/pruned/checkpoint-6")
    state = folder / "checkpoints/pruned/checkpoint-3/trainer_state.json"
    state.write_text(state.read_text().replace(str(healed.folder), str(folder)))
    (folder / "result.json").write_text(json.dumps({**whole, "status": "running"}))
    given = (*SHORT, "repair=closed_form", "evaluation.num_samples=0")
    again = train(folder, *given, LAMINA_CACHE=str(tmp_path / "cache"))
    assert again.code == 0, again.errors
    assert again.result["resumed_from"] == str(folder / "checkpoints/pruned/checkpoint-3")
    assert again.result["repair"] == {
        **whole["repair"],
        "seconds": again.result["repair"]["seconds"],
    }
    assert again.result["history"] == whole["history"]
    assert again.metrics["eval_loss"] == whole["metrics"]["eval_loss"]
    other = train(folder, *SHORT, "evaluation.num_samples=0", "max_steps=9")
    assert other.refusal == (
        f"error: resume=auto, but {folder}/checkpoints/pruned/checkpoint-6 has repair=closed_form, "
        "not none: use another hydra.run.dir\n"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ("model=dropped", "model.layer_to_drop=0", "repair=closed_form"),
            "repair=closed_form: no layer precedes the cut [0, 1): keep layer 0 "
            "(depth.protect=[0]), or use repair=magnitude",
        ),
        (
            ("repair=magnitude",),
            "repair=magnitude: no layer follows the cut [8, 12), so nothing would change: use "
            "repair=closed_form or repair=none",
        ),
        (
            ("repair=closed_form", "scan.memory=5MB"),
            "scan.memory=5MB is too small for repair=closed_form with 16,000 calibration tokens, "
            "which takes 26.1 MB: lower scan.tokens, or raise scan.memory",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_slow(
    given: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    done = train(tmp_path / "run", *SHORT, *given)
    assert done.refusal == f"error: {message}\n"
    assert done.code == 1
