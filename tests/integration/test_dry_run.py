"""dry_run=true shows what a run would do and take, and leaves nothing but its report."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from rich.console import Console

from lamina.config.schema import register
from lamina.dry_run import dry_run
from lamina.errors import ConfigError, TrainingError
from lamina.measure.results import Record
from lamina.report.dry_run_report import dry_run_report, refuse_what_does_not_fit
from lamina.run import run
from lamina.runtime.paths import conf_dir
from lamina.runtime.sizes import folder_bytes, most_checkpoints
from lamina.units import format_bytes, format_duration
from lamina.weights.header import read_header
from tests.conftest import SHORT, Finished, lamina, train

PRUNED = (*SHORT, "model=pruned", "model.keep_layers=8")
FORMS = {
    "adapter": ("adapter=lora",),
    "both": ("adapter=lora", "export.form=both"),
    "model": ("adapter=full", "learning_rate=1e-4"),
}


@pytest.fixture(scope="module", params=FORMS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Finished, Finished]:
    """The dry run of a run, and the run."""
    folder = tmp_path_factory.mktemp("dry")
    chosen = (*PRUNED, *FORMS[request.param])
    dry = train(folder / "dry", *chosen, "dry_run=true")
    run = train(folder / "run", *chosen)
    assert (dry.code, run.code) == (0, 0), dry.errors + run.errors
    return dry, run


def reported(dry: Finished) -> dict[str, Any]:
    return json.loads((dry.folder / "dry_run.json").read_text())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_target_decides_the_layers_of_dry_run_and_run(dtype: str, tmp_path: Path) -> None:
    given = (*SHORT, "model=pruned", "selector=leave_one_out", "adapter=full", "learning_rate=1e-4")
    given += ("model.target_bytes=4MB", f"export.dtype={dtype}", "evaluation=none")
    if dtype == "bfloat16":
        refused = train(tmp_path / "refused", *given)
        assert refused.refusal == (
            "error: model.target_bytes=4MB: the whole model has 3,629,056 bytes and meets it: use "
            "less, or choose model=original\n"
        )
        return
    dry = train(tmp_path / "dry", *given, "dry_run=true")
    done = train(tmp_path / "run", *given)
    line = "model.target_bytes=4MB: keeping 6 of 12 layers, 3.71 MB"
    assert line in dry.errors
    assert line in dry.output
    assert line in done.errors
    assert len(done.result["kept_layers"]) == 6
    assert reported(dry)["kept_layers"] == done.result["kept_layers"]
    weights = read_header(done.final / "model.safetensors").values()
    size, layer = sum(tensor.nbytes for tensor in weights), 4 * 147_776
    assert size <= 4_000_000 < size + layer
    note = json.loads((done.final / "lamina.json").read_text())
    assert note["selector"]["target_bytes"] == "4MB"
    assert note["selector"]["keep_layers"] == 6
    assert note["notes"][0] == line


def test_a_teacher_takes_the_memory_of_the_layers_that_went(tmp_path: Path) -> None:
    dry = train(tmp_path / "dry", *PRUNED, "trainer=distill", "dry_run=true")
    assert dry.code == 0, dry.errors
    nbytes = 4 * 147_776 * 4  # layers, weights, float32
    assert reported(dry)["footprint"]["teacher"] == nbytes
    assert ["teacher", *format_bytes(nbytes).split()] in [
        line.split()[:3] for line in dry.output.splitlines()
    ]


def test_nothing_is_written_but_the_report(pair: tuple[Finished, Finished]) -> None:
    dry, _ = pair
    own = {path.name for path in dry.folder.iterdir()} - {".hydra", "train.log"}
    assert own == {"dry_run.json"}


def test_the_run_does_what_the_dry_run_said(pair: tuple[Finished, Finished]) -> None:
    dry, run = pair
    report, result = reported(dry), run.result
    assert report["kept_layers"] == result["kept_layers"] == list(range(8))
    assert report["parameters"] == result["num_parameters"]
    assert report["trainable_parameters"] == result["trainable_parameters"]
    assert report["data"] == result["data"]
    assert report["config"]["max_steps"] == 6


def test_the_run_takes_what_the_dry_run_said(pair: tuple[Finished, Finished]) -> None:
    dry, run = pair
    footprint = reported(dry)["footprint"]
    written = run.folder / "checkpoints" / "pruned"
    largest = max(map(folder_bytes, written.glob("checkpoint-*")))
    assert footprint["checkpoint"] == pytest.approx(largest, rel=0.05)
    final = sum(map(folder_bytes, written.glob("final*")))
    assert footprint["final"] == pytest.approx(final, rel=0.05)
    assert footprint["disk"] >= 0.95 * folder_bytes(written)
    assert footprint["optimizer"] == pytest.approx(2 * footprint["gradients"], rel=0.01)
    assert footprint["peak_memory"] < 1.2 * run.metrics["peak_memory_bytes"]


def test_the_console_shows_the_config_the_layers_and_what_is_trained(
    pair: tuple[Finished, Finished],
) -> None:
    output = pair[0].output
    assert "keep_layers: 8" in output
    assert "■■■■■■■■□□□□  8 of 12 layers: [0, 8)" in output
    assert "tokens trained" in output
    assert "\nteacher" not in output
    assert "<|im_start|>assistant\n⟦" in output
    assert output.count("<|im_end|>⟧") == 2
    assert "⟦<|im_start|>user" not in output


def test_colours_tell_trained_text_from_read(
    pair: tuple[Finished, Finished],
) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(dry_run_report(reported(pair[0]), "", console))
    shown = console.file.getvalue()
    assert "⟦" not in shown
    piece = next(p for p in reported(pair[0])["sample"][0] if p["trained"])
    assert f"\x1b[1;32m{piece['text']}" in shown


def test_too_small_a_disk_is_reported(pair: tuple[Finished, Finished]) -> None:
    report = reported(pair[0])
    refuse_what_does_not_fit(report, "here")
    report["footprint"]["free_disk"] = report["footprint"]["disk"] - 1
    with pytest.raises(ConfigError, match=r"output_dir=here: \d checkpoints and final/ take"):
        refuse_what_does_not_fit(report, "here")


def test_too_little_memory_is_reported_before_weights_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        given = [*PRUNED, "run_dir=.", "dry_run=true"]
        experiment = instantiate(compose("config", overrides=given))
    monkeypatch.setattr("lamina.dry_run.free_memory_bytes", lambda: 1_000_000)
    monkeypatch.setattr("lamina.weights.reading.tensor_slices", None)
    message = r"1,223,424 weights and the gradients of 262,144 take at least 0\.0 GB of memory"
    with pytest.raises(ConfigError, match=message):
        dry_run(experiment, processes=1)


def test_too_small_an_accelerator_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        given = [*PRUNED, "run_dir=.", "dry_run=true"]
        experiment = instantiate(compose("config", overrides=given))

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("lamina.heal.memory.find_spec", {}.get)
    monkeypatch.setattr("trl.SFTTrainer.train", full)
    with pytest.raises(TrainingError) as caught:
        dry_run(experiment, processes=1)
    assert str(caught.value) == (
        "out of memory: the training does not fit; try, in this order: gradient_checkpointing=true "
        "(saves about 27.3 MB); bf16=true (saves about 16.8 MB); max_seq_length=256 (saves about "
        "17 MB)"
    )


def test_bad_data_is_found_as_in_a_run(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": 5}\n')
    done = train(tmp_path / "run", "experiment=quickstart", "data=jsonl", "data.train=rows.jsonl",
                 "data.eval=null", "dry_run=true", cwd=tmp_path)  # fmt: skip
    assert done.code == 1
    assert "rows.jsonl" in done.errors
    assert not (tmp_path / "run" / "dry_run.json").exists()


def test_a_scan_has_no_dry_run(tmp_path: Path) -> None:
    done = lamina("scan", "experiment=quickstart", "dry_run=true", cwd=tmp_path)
    assert done.code == 1
    assert done.refusal == (
        "error: dry_run=true has no meaning in a scan, which trains nothing: leave it out\n"
    )


@pytest.mark.parametrize(
    ("limit", "steps", "interval", "most"), [(5, 1000, 100, 6), (1, 1000, 100, 3), (5, 250, 100, 3)]
)
def test_an_old_checkpoint_goes_once_the_new_one_is_complete(
    limit: int, steps: int, interval: int, most: int
) -> None:
    assert most_checkpoints(limit, steps, interval) == most


def test_a_run_out_of_memory_names_settings_that_need_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        given = [*PRUNED, f"run_dir={tmp_path}", "evaluation=none", "logger=none"]
        given += ["per_device_train_batch_size=2", "bf16=true"]
        experiment = instantiate(compose("config", overrides=given))

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("lamina.heal.memory.find_spec", {}.get)
    monkeypatch.setattr("trl.SFTTrainer.training_step", full)
    with pytest.raises(TrainingError) as caught:
        run(experiment, Record(tmp_path, []))
    assert str(caught.value) == (
        "out of memory: the training does not fit; try, in this order: "
        "per_device_train_batch_size=1 gradient_accumulation_steps=2 (saves about 17.6 MB); "
        "gradient_checkpointing=true (saves about 27.3 MB); max_seq_length=256 (saves about 17.6 "
        "MB)"
    )
    monkeypatch.setattr("lamina.depth.loading.load_model", full)
    with pytest.raises(TrainingError) as caught:
        run(experiment, Record(tmp_path, []))
    assert str(caught.value).startswith("out of memory: the model does not fit; try, in this order")


def test_a_dry_run_of_a_sweep_sums_up_the_jobs_that_can_run(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    given = ("--multirun", f"hydra.sweep.dir={folder}", *SHORT, "model=pruned", "dry_run=true")
    done = train(tmp_path / "run", *given, "model.keep_layers=8,4,99")
    reports = [json.loads((folder / name / "dry_run.json").read_text()) for name in "01"]
    disk = format_bytes(sum(report["footprint"]["disk"] for report in reports))
    assert all(
        report["seconds"] == report["steps"] * report["step"]["seconds"] for report in reports
    )
    time = format_duration(sum(report["seconds"] for report in reports))
    last = done.output.splitlines()[-1]
    assert last.startswith(f"sweep of 2 of 3 jobs: {disk} of disk, ")
    assert last.endswith(
        f" free; {time} of training, at the first step's speed, without evaluations"
    )
    assert done.errors.splitlines()[-1] == "error: 1 of 3 jobs cannot run: 2; see above"
