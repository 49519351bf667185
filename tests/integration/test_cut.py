"""lamina cut: a reduced checkpoint from the command line, with all that belongs to a model."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import REFERENCE, environment, lamina

MODEL = f"model_name={REFERENCE}"


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cut")
    given = (MODEL, "model=dropped", "model.layer_to_drop=2", "output=out")
    done = lamina("cut", *given, cwd=folder)
    assert done.code == 0, done.errors
    assert done.output.startswith("out: 11 of 12 layers, [0, 2), [3, 12) (0-based, half-open)")
    assert done.refusal == ""
    assert [path.name for path in folder.iterdir()] == ["out"]
    return folder / "out"


def test_the_kept_tensors_are_written_unchanged(cut: Path) -> None:
    before = load_file(REFERENCE / "model.safetensors")
    after = load_file(cut / "model.safetensors")
    kept = [index for index in range(12) if index != 2]
    names = {
        f"model.layers.{new}.{name.split('.', 3)[3]}": name
        for new, old in enumerate(kept)
        for name in before
        if name.startswith(f"model.layers.{old}.")
    }
    names |= {name: name for name in before if ".layers." not in name}
    assert after.keys() == names.keys()
    for new, old in names.items():
        assert after[new].dtype == before[old].dtype
        assert after[new].equal(before[old])


def test_the_folder_is_a_complete_model(cut: Path) -> None:
    same = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    for name in same:
        assert (cut / name).read_bytes() == (REFERENCE / name).read_bytes()
    assert json.loads((cut / "generation_config.json").read_text())["eos_token_id"] == [2]
    config = json.loads((cut / "config.json").read_text())
    assert config["num_hidden_layers"] == len(config["layer_types"]) == 11
    assert config["dtype"] == "bfloat16"
    note = json.loads((cut / "lamina.json").read_text())
    assert note["source_model"] == REFERENCE.name
    assert note["kept_layers"] == [0, 1, *range(3, 12)]
    assert note["selector"] == {"layer_to_drop": 2}
    assert note["healing"] is note["adapter"] is note["data_fingerprint"] is None
    assert "Not healed" in (cut / "README.md").read_text()


def test_plain_transformers_loads_it(cut: Path) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(cut, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(cut)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "reverse ABC"}],
        add_generation_prompt=True,
        return_tensors="pt",
    )["input_ids"]
    assert model.generate(ids, max_new_tokens=4).shape[1] > ids.shape[1]


def test_any_set_of_layers_is_cut(tmp_path: Path) -> None:
    given = (MODEL, "model=layers", "model.keep=[0,1,2,5-12]", "output=kept")
    assert lamina("cut", *given, cwd=tmp_path).code == 0
    given = (MODEL, "model=layers", "model.drop=3-5", "output=dropped")
    assert lamina("cut", *given, cwd=tmp_path).code == 0
    notes = [json.loads((tmp_path / n / "lamina.json").read_text()) for n in ("kept", "dropped")]
    assert notes[0]["kept_layers"] == notes[1]["kept_layers"] == [0, 1, 2, *range(5, 12)]
    same = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("kept", "dropped")]
    assert same[0] == same[1]


def test_a_sweep_of_targets_cuts_what_meets_each(tmp_path: Path) -> None:
    swept = ("model.target_parameters=1e6,1.5M", "output=${model.target_parameters}")
    done = lamina("cut", "--multirun", MODEL, "model=pruned", *swept, "selector=last", cwd=tmp_path)
    assert done.code == 0, done.errors
    assert "model.target_parameters=1e6: keeping 6 of 12 layers, 9.28e5 parameters" in done.output
    assert "model.target_parameters=1.5M: keeping 9 of 12 layers, 1.37e6 parameters" in done.output
    for name, limit, each in (("1000000.0", 1e6, 147_776), ("1.5M", 1.5e6, 147_776)):
        tensors = load_file(tmp_path / name / "model.safetensors")
        count = sum(tensor.numel() for tensor in tensors.values())
        assert count <= limit < count + each


def test_a_sweep_cuts_one_model_per_job(tmp_path: Path) -> None:
    given = (MODEL, "model.layer_to_drop=0,11", "output=out/${model.layer_to_drop}")
    done = lamina("cut", "--multirun", *given, cwd=tmp_path)
    assert done.code == 0, done.errors
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0", "11"]


def test_a_job_that_fails_ends_the_sweep_in_one_line(tmp_path: Path) -> None:
    given = ("output=${model.layer_to_drop}", "model.layer_to_drop=99,1")
    done = lamina("cut", "--multirun", MODEL, *given, cwd=tmp_path)
    assert done.code == 1
    reason = "model.layer_to_drop=99, but the model has 12 layers: use 0 to 11 (0-based)"
    assert done.errors.splitlines()[-1] == f"error: job 0: {reason}"
    assert done.errors.count("rror") == 1


MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "no output": ((MODEL,), "output is missing: set output=VALUE"),
    "a typo": (("model_nam=x", "output=y"), "model_nam=x: no such key; did you mean model_name?"),
    "the source": (
        (MODEL, f"output={REFERENCE}", "model.layer_to_drop=2"),
        f"output={REFERENCE} is the source itself: use another folder",
    ),
    "outside": (
        (MODEL, "output=out", "model=layers", "model.keep=[0,5-13]"),
        "model.keep=[0,5-13]: 5-13 lies outside of the model's 12 layers: indices are 0 to 11, "
        "ranges half-open (0-12 is all)",
    ),
    "neither": (
        (MODEL, "output=out", "model=layers"),
        "model=layers takes either model.keep or model.drop",
    ),
    "no such layer": (
        (MODEL, "output=out", "model.layer_to_drop=12"),
        "model.layer_to_drop=12, but the model has 12 layers: use 0 to 11",
    ),
    "too small a target": (
        (MODEL, "output=out", "model=pruned", "model.target_parameters=1e4"),
        "model.target_parameters=1e4: keeping 1 of 12 layers, the fewest possible, leaves 188,992 "
        "parameters: use that or more",
    ),
    "too large a target": (
        (MODEL, "output=out", "model=pruned", "model.target_bytes=1GB"),
        "model.target_bytes=1GB: the whole model has 3,629,056 bytes and meets it: use less",
    ),
    "no target": (
        (MODEL, "output=out", "model=pruned", "model.target_bytes=12"),
        "model.target_bytes=12: use a number such as 500MB, 8GB or 8GiB",
    ),
    "two numbers": (
        (MODEL, "output=out", "model=pruned", "model.target_bytes=2MB", "model.keep_layers=8"),
        "model.target_bytes=2MB and model.keep_layers=8: set only one of them",
    ),
    "a file": ((MODEL, f"output={__file__}", "model.layer_to_drop=2"), f"output={__file__} is a "),
    "no place": (
        (MODEL, "output=/proc/out", "model.layer_to_drop=2"),
        "output=/proc/out cannot be written: No such file or directory; nothing of it remains: "
        "make room or use another folder",
    ),
    "no experiment": (
        (MODEL, "output=out", "experiment=quickstart"),
        "experiment=quickstart: not a group of this command; use model or selector",
    ),
    "from scratch": ((MODEL, "output=out", "model=scratch"), "model=scratch has no weights to cut"),
    "no folder": (("model_name=./gone", "output=out"), "model_name=./gone: no such folder"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_reported_in_one_line_before_torch_is_imported(
    mistake: str, tmp_path: Path
) -> None:
    given, message = MISTAKES[mistake]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", RUN, *given],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
        check=False,
    )
    lines = done.stderr.splitlines()
    said = [line for line in lines if not line.startswith("import time:")]
    assert done.returncode == 1
    assert len(said) == 1
    assert said[0].startswith(f"error: {message}")
    assert not [line for line in lines if line.endswith("| torch")]
    assert list(tmp_path.iterdir()) == []


RUN = "import sys; from lamina.cli import main; sys.argv[:1] = ['lamina', 'cut']; main()"


def test_a_non_empty_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    done = lamina("cut", MODEL, "model.layer_to_drop=1", "output=out", cwd=tmp_path)
    assert done.code == 1
    assert done.refusal == "error: output=out is not empty: use a new or empty folder\n"
    assert (tmp_path / "out" / "mine").read_text() == "precious"


def test_a_damaged_source_leaves_nothing_behind(tmp_path: Path) -> None:
    source: dict[str, Any] = {p.name: p.read_bytes() for p in REFERENCE.iterdir() if p.is_file()}
    (tmp_path / "model").mkdir()
    for name, content in source.items():
        (tmp_path / "model" / name).write_bytes(content)
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-2])
    done = lamina("cut", "model_name=model", "model.layer_to_drop=1", "output=out", cwd=tmp_path)
    assert done.code == 1
    assert "model.safetensors is truncated or corrupt" in done.errors
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_card_is_utf_8_in_any_locale(tmp_path: Path) -> None:
    shutil.copytree(REFERENCE, tmp_path / "model")
    card = "---\nlicense: propriétaire\n---\n"
    (tmp_path / "model" / "README.md").write_text(card, encoding="utf-8")
    given = ("model_name=model", "model.layer_to_drop=1", "output=out")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = lamina("cut", *given, cwd=tmp_path, **ascii_only)
    assert (done.code, done.refusal) == (0, "")
    assert "license: propriétaire" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_every_chat_template_is_copied(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(REFERENCE, source)
    (source / "additional_chat_templates").mkdir()
    further = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (source / "additional_chat_templates" / "tool_use.jinja").write_text(further)
    given = (f"model_name={source}", "model=dropped", "model.layer_to_drop=2", "output=out")
    done = lamina("cut", *given, cwd=tmp_path)
    assert (done.code, done.refusal) == (0, "")
    templates = AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert templates["tool_use"] == further
    assert templates == AutoTokenizer.from_pretrained(source).chat_template


@pytest.mark.parametrize("differs", [True, False])
def test_config_json_says_whether_embedding_and_head_are_tied(
    differs: bool, tmp_path: Path
) -> None:
    """Some checkpoints hold a head of their own beside tie_word_embeddings=true."""
    source = tmp_path / "source"
    shutil.copytree(REFERENCE, source)
    tensors = load_file(source / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].clone()
    head[-1] += differs
    save_file({**tensors, "lm_head.weight": head}, source / "model.safetensors", {"format": "pt"})
    for given in (("model=dropped", "model.layer_to_drop=2"), ("model=original",)):
        output = "-".join(given).replace("=", "-")
        done = lamina("cut", f"model_name={source}", *given, f"output={output}", cwd=tmp_path)
        assert done.code == 0, done.errors
        config = json.loads((tmp_path / output / "config.json").read_text())
        assert config["tie_word_embeddings"] is not differs
        model = AutoModelForCausalLM.from_pretrained(tmp_path / output)
        assert torch.equal(model.lm_head.weight, head)
