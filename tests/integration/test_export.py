"""lamina export and lamina show: a run's result in every form, and what is refused."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.architectures import save
from tests.conftest import REFERENCE, SHORT, Finished, environment, lamina, train


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A LoRA run whose adapter form would not be exact: its layers are of two types."""
    folder = tmp_path_factory.mktemp("mixed")
    model = save("gemma3_text", folder / "model", vocab_size=321)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(REFERENCE / name, model)
    given = (f"model_name={model}", "model=layers", "model.drop=[1,4]", "max_seq_length=64")
    done = train(folder / "run", *SHORT, *given, "evaluation.num_samples=0")
    assert done.code == 0, done.errors
    return done


@pytest.fixture
def moved(pruned: Finished, tmp_path: Path) -> Finished:
    """A copy of the short run, to do harm to; its base is a copy, too."""
    shutil.copytree(REFERENCE, tmp_path / "base")
    folder = Path(shutil.copytree(pruned.folder, tmp_path / "run"))
    final = folder / pruned.result["final"]
    for name, key in (("lamina.json", "source_model"), ("adapter_config.json", None)):
        content = json.loads((final / name).read_text())
        content[key or "base_model_name_or_path"] = str(tmp_path / "base")
        (final / name).write_text(json.dumps(content))
    return Finished(0, "", "", folder)


def test_the_merged_form_stands_alone(pruned: Finished, tmp_path: Path) -> None:
    done = lamina("export", pruned.folder, "--output", "out", cwd=tmp_path)
    assert done.code == 0, done.errors
    assert done.output.splitlines()[0] == "out: merged, float32"
    assert done.refusal == ""
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    adapter = AutoModelForCausalLM.from_pretrained(pruned.final, dtype=torch.float32)
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        apart = (merged(ids).logits - adapter(ids).logits).abs().max()
    assert apart < 1e-4
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "lamina.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    note = json.loads((tmp_path / "out" / "lamina.json").read_text())
    recorded = json.loads((pruned.final / "lamina.json").read_text())
    own = {"source_model": REFERENCE.name, "export": note["export"]}
    assert note == recorded | own
    assert {key: note["export"][key] for key in ("form", "dtype", "all_rows")} == {
        "form": "merged",
        "dtype": "float32",
        "all_rows": 60,
    }
    assert note["selector"] == {"keep_layers": 8, "selector": {"name": "First"}}


def test_the_adapter_form_is_copied_with_its_card(pruned: Finished, tmp_path: Path) -> None:
    done = lamina("export", pruned.folder, "--output", "out", "--form", "adapter", cwd=tmp_path)
    assert done.code == 0, done.errors
    assert not (tmp_path / "out" / "config.json").exists()
    out, name = tmp_path / "out", "adapter_model.safetensors"
    assert (out / name).read_bytes() == (pruned.final / name).read_bytes()
    for name, own in (
        ("adapter_config.json", {"base_model_name_or_path": str(REFERENCE)}),
        ("lamina.json", {"source_model": REFERENCE.name}),
    ):
        found, recorded = (json.loads((f / name).read_text()) for f in (out, pruned.final))
        found.pop("export", None), recorded.pop("export", None)
        assert found == {**recorded, **own}
    assert "Loss of this form, adapter in float32: " in (out / "README.md").read_text()
    assert "checked: loss" in done.output
    again = ("export", "out", "--output", "copy", "--form", "adapter", "--base", REFERENCE)
    alone = lamina(*again, cwd=tmp_path)
    assert alone.code == 0, alone.errors
    assert "checked: every tensor is in place; there are no rows to evaluate" in alone.output


def test_a_whole_model_is_exported_in_another_dtype(pruned: Finished, tmp_path: Path) -> None:
    assert lamina("export", pruned.folder, "--output", "full", cwd=tmp_path).code == 0
    done = lamina("export", "full", "--output", "half", "--dtype", "bfloat16", cwd=tmp_path)
    assert done.code == 0, done.errors
    assert "checked: every tensor is in place; there are no rows to evaluate" in done.output
    full, half = (load_file(tmp_path / n / "model.safetensors") for n in ("full", "half"))
    assert all(torch.equal(full[name].bfloat16(), half[name]) for name in full | half)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"


def test_mixed_layer_types_are_merged_and_export_no_adapter(
    mixed: Finished, tmp_path: Path
) -> None:
    assert (mixed.final / "config.json").is_file()
    assert not (mixed.final / "adapter_config.json").exists()
    done = lamina("export", mixed.folder, "--output", "out", "--form", "adapter", cwd=tmp_path)
    assert done.code == 1
    assert "cannot rebuild this set of layers of this architecture exactly" in done.errors
    done = lamina("export", mixed.folder, "--output", "out", cwd=tmp_path)
    assert done.code == 0, done.errors
    assert "checked: loss" in done.output


def test_the_adapter_of_a_merged_run_is_its_best_checkpoints(tmp_path: Path) -> None:
    run = train(tmp_path / "run", *SHORT, "export.form=merged")
    assert run.code == 0, run.errors
    done = lamina("export", run.folder, "--output", "out", "--form", "adapter", cwd=tmp_path)
    assert done.code == 0, done.errors
    merged = AutoModelForCausalLM.from_pretrained(run.final)
    base = AutoModelForCausalLM.from_pretrained(REFERENCE, dtype=torch.float32)
    adapter = PeftModel.from_pretrained(base, str(tmp_path / "out"))
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert (merged(ids).logits - adapter(ids).logits).abs().max() < 1e-4


def refused(done: Finished, message: str, output: Path) -> None:
    assert done.code == 1
    assert done.refusal.count("\n") == 1
    assert message in done.errors
    assert not output.exists()
    assert not list(output.parent.glob(".*partial"))


def test_a_non_empty_output_is_refused(pruned: Finished, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    (tmp_path / "file").touch()
    for output, message in (
        ("out", "--output=out is not empty"),
        ("file", "--output=file is a file: use a new or empty folder"),
        (pruned.final, "is the source itself"),
        (pruned.folder, "is the source itself"),
    ):
        done = lamina("export", pruned.folder, "--output", output, cwd=tmp_path)
        assert (done.code, message in done.errors) == (1, True), done.errors
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_base_with_other_weights_is_refused(moved: Finished, tmp_path: Path) -> None:
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.3.mlp.up_proj.weight"] += 1
    save_file(tensors, path, {"format": "pt"})
    done = lamina("export", moved.folder, "--output", "out", cwd=tmp_path)
    message = (
        f"error: {tmp_path / 'base'} does not have the weights that the adapter in {moved.final} "
        "was trained on, and an adapter on other weights gives wrong numbers: restore them\n"
    )
    refused(done, message, tmp_path / "out")


def test_a_missing_base_is_named(moved: Finished, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "base")
    done = lamina("export", moved.folder, "--output", "out", cwd=tmp_path)
    refused(done, f"{tmp_path / 'base'}: no such folder", tmp_path / "out")


@pytest.mark.parametrize(
    ("form", "message"),
    [("merged", "was trained on a model other than its base"), ("adapter", "do not fit the model")],
)
def test_an_adapter_of_another_base_is_refused(
    moved: Finished, form: str, message: str, tmp_path: Path
) -> None:
    path = moved.final / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: t[..., :-1].contiguous() for name, t in tensors.items()}, path)
    done = lamina("export", moved.folder, "--output", "out", "--form", form, cwd=tmp_path)
    refused(done, message, tmp_path / "out")


@pytest.mark.parametrize(
    ("form", "message"),
    [("merged", "of layer 7 is missing"), ("adapter", "do not fit the model (first: model.lay")],
)
def test_an_adapter_with_a_missing_tensor_is_refused(
    moved: Finished, form: str, message: str, tmp_path: Path
) -> None:
    path = moved.final / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors[next(name for name in tensors if "layers.7." in name)]
    save_file(tensors, path)
    done = lamina("export", moved.folder, "--output", "out", "--form", form, cwd=tmp_path)
    refused(done, message, tmp_path / "out")


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_an_export_with_another_loss_is_deleted(moved: Finished, form: str, tmp_path: Path) -> None:
    path = moved.final / "adapter_model.safetensors"
    save_file({name: t + 0.5 for name, t in load_file(path).items()}, path)
    done = lamina("export", moved.folder, "--output", "out", "--form", form, cwd=tmp_path)
    refused(done, f"{moved.final}: loaded again, the export has a loss of", tmp_path / "out")
    line = (
        r"error: \S+/final: loaded again, the export has a loss of [\d.]+, but the run recorded "
        r"[\d.]+ on the same rows: the export was deleted; please report this\n"
    )
    assert re.fullmatch(line, done.refusal)


def test_anything_but_a_finished_run_is_refused(moved: Finished, tmp_path: Path) -> None:
    done = lamina("export", "gone", "--output", "out", cwd=tmp_path)
    refused(done, "gone: no such folder", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    done = lamina("export", "empty", "--output", "out", cwd=tmp_path)
    message = "empty: neither a run folder nor a model that Lamina wrote (no lamina.json)\n"
    refused(done, message, tmp_path / "out")
    result = moved.result
    (moved.folder / "result.json").write_text(json.dumps({**result, "final": None}))
    done = lamina("export", moved.folder, "--output", "out", cwd=tmp_path)
    message = (
        f"{moved.folder}: the run left no final/ (status completed); run the same command with the "
        "same hydra.run.dir to finish it\n"
    )
    refused(done, message, tmp_path / "out")


def test_dtype_needs_the_merged_form(pruned: Finished, tmp_path: Path) -> None:
    given = ("--output", "out", "--form", "adapter", "--dtype", "bfloat16")
    done = lamina("export", pruned.folder, *given, cwd=tmp_path)
    message = "error: --dtype=bfloat16 needs --form merged: an adapter keeps its own type\n"
    refused(done, message, tmp_path / "out")


def test_show_prints_the_kept_layers_without_importing_torch(
    pruned: Finished, tmp_path: Path
) -> None:
    code = "import sys; from lamina.cli import main; sys.argv[:1] = ['lamina', 'show']; main()"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, str(pruned.folder)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(COLUMNS="200"),
        check=True,
    )
    assert not [line for line in done.stderr.splitlines() if line.endswith("| torch")]
    assert "pruned: 8 of 12 layers of" in done.stdout
    assert "■" * 8 + "□" * 4 in done.stdout
    assert "[0, 8)  full_attention          147,776 each  295,552 each  BF16" in done.stdout
    assert "1,223,424" in done.stdout


def test_show_names_no_source_of_a_model_that_was_trained_from_random_weights(
    tmp_path: Path,
) -> None:
    done = lamina("show", REFERENCE, cwd=tmp_path, COLUMNS="200")
    assert done.code == 0, done.errors
    first = done.output.splitlines()[0]
    assert first == "scratch: 12 of 12 layers, trained from random weights"


def test_show_counts_a_models_parameters(tmp_path: Path) -> None:
    folder = save("gemma3_text", tmp_path / "model")
    done = lamina("show", folder, cwd=tmp_path, COLUMNS="200")
    assert done.code == 0, done.errors
    rows = [line.split() for line in done.output.splitlines() if line.startswith("[")]
    assert [row[:3] for row in rows] == [
        ["[0,", "2)", "sliding_attention"],
        ["[2,", "3)", "full_attention"],
        ["[3,", "5)", "sliding_attention"],
        ["[5,", "6)", "full_attention"],
    ]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert f"{model.num_parameters():,}" in done.output
    done = lamina("show", tmp_path / "gone", cwd=tmp_path)
    assert (done.code, done.errors.count("\n")) == (1, 1)
    (tmp_path / "table.csv").touch()
    (tmp_path / "empty").mkdir()
    advice = "pass a hub id, or the folder of a model, run, sweep or scan\n"
    for given, what in (("table.csv", "is a file"), ("empty", "holds nothing to show")):
        done = lamina("show", given, cwd=tmp_path)
        assert (done.code, done.errors) == (1, f"error: {given} {what}: {advice}")
