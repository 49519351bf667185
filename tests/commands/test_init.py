"""`lamina init`: overrides as an experiment file."""

import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.conftest import REFERENCE, lamina, run

OVERRIDES = (
    "experiment=quickstart",
    "model=layers",
    "model.drop=[3,'5-7']",
    "adapter.target_modules=[q_proj]",
    "learning_rate=1e-3",
    "trainer.args.max_grad_norm=0.5",
    "logger=both",
    "logger.wandb.name='a, b'",
)


def composed(folder: Path, *arguments: str) -> object:
    done = run("-m", "train", *arguments, "--cfg", "job", cwd=folder)
    assert done.returncode == 0, done.stderr
    return OmegaConf.create(done.stdout)


def test_the_file_composes_to_what_the_overrides_do(tmp_path: Path) -> None:
    done = lamina("init", "mine", *OVERRIDES, cwd=tmp_path)
    assert done.code == 0, done.errors
    command = "python -m train --config-dir . experiment=mine"
    assert done.output.splitlines() == ["experiment/mine.yaml", command]
    assert composed(tmp_path, *command.split()[3:]) == composed(tmp_path, *OVERRIDES)
    lines = (tmp_path / "experiment" / "mine.yaml").read_text().splitlines()
    assert lines[:4] == [
        "# @package _global_",
        "# Written by lamina init; docs/parameters.md has every key.",
        "defaults:",
        "  - quickstart",
    ]
    assert (
        "learning_rate: 0.001   # peak value, after warmup; the default is the adapter's" in lines
    )
    assert "  - override /logger: both   # TensorBoard and Weights & Biases." in lines


def test_long_text_several_lines_and_paths_of_files_are_values(tmp_path: Path) -> None:
    """No comment stands in a value, and a file beside a model is no option of a group."""
    shutil.copytree(REFERENCE, tmp_path / "model")
    (tmp_path / "model.yaml").write_text("a: 1")
    long = f"{tmp_path}/{'a folder with blanks/' * 8}seed: rows.jsonl"
    given = [f"model_name={tmp_path}/model", "data=jsonl", f'data.train="{long}"']
    given += ['logging_dir="a\nb"', "model=layers", f"model.keep={[*range(11)]}"]
    done = lamina("init", "mine", *given, cwd=tmp_path)
    assert done.code == 0, done.errors
    found = composed(tmp_path, "--config-dir", ".", "experiment=mine")
    assert found == composed(tmp_path, *given)
    text = (tmp_path / "experiment" / "mine.yaml").read_text()
    assert "rows.jsonl'   # file of training rows, or a folder of such files\n" in text


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("mine sed=1", "sed=1: no such key; did you mean seed?"),
        ("mine ~seed", "~seed: an experiment file only adds and replaces keys"),
        ("mine learning_rate=0", "learning_rate=0.0: use a value above 0"),
        (
            "quickstart seed=1",
            "quickstart: use a name of letters, digits, - and _ that starts with",
        ),
        ("taken seed=1", "experiment/taken.yaml already exists: use another NAME"),
    ],
)
def test_a_mistake_is_refused_and_nothing_is_written(
    given: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "taken.yaml").write_text("mine")
    done = lamina("init", *given.split(), cwd=tmp_path)
    assert done.code == 1
    assert done.errors.startswith(f"error: {reason}")
    files = [path.read_text() for path in (tmp_path / "experiment").iterdir()]
    assert files == ["mine"]
