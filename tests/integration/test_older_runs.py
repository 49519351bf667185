"""A config of the older form trains, alone and in the jobs of a launcher."""

import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from tests.conftest import REFERENCE, lamina, train

ROWS = ["one plus one is two", "two plus two is four", "four plus four is eight"] * 8

BASE = f"""
model_name: {REFERENCE}
max_seq_length: 64
learning_rate: 2e-3
per_device_train_batch_size: 1
gradient_accumulation_steps: 1
max_steps: 3
logging_steps: 1
bf16: no
gradient_checkpointing: no
packing: no
report_to: none
dataset_path: rows
output_dir: kept
lora: {{r: 4}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    splits = {
        "train": Dataset.from_dict({"text": ROWS}),
        "eval": Dataset.from_dict({"text": ROWS[:3]}),
    }
    DatasetDict(splits).save_to_disk(tmp_path / "rows")
    (tmp_path / "base.yaml").write_text(BASE)
    return tmp_path


def child(folder: Path, text: str) -> str:
    (folder / "child.yaml").write_text(f"_extends: base.yaml\n{text}")
    return "child.yaml"


def test_old_trains_as_the_file_says(folder: Path) -> None:
    path = child(
        folder, "model_type: dropped\nlayer_to_drop: 8\nuse_lora: true\nlora: {alpha: 8}\n"
    )
    done = train(folder / "run", f"--old={path}", "max_steps=2", "eval_steps=1", "save_steps=1")
    assert done.code == 0, done.errors
    assert done.result["kept_layers"] == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11]
    assert done.result["adapter"] == "lora"
    assert [step["step"] for step in done.result["history"] if "loss" in step] == [1, 2]
    assert done.final == folder / "run" / "../kept/dropped/final"
    assert done.metrics["eval_loss"] < done.metrics["reduced_eval_loss"]


@pytest.mark.parametrize("strategy", ["no", "epoch"])
def test_a_migrated_strategy_trains(strategy: str, folder: Path) -> None:
    path = child(
        folder, f"model_type: pruned\nkeep_layers: 8\nuse_lora: no\neval_strategy: {strategy}\n"
    )
    assert lamina("migrate", path, cwd=folder).code == 0
    given = ("--config-dir=migrated", "experiment=child", "evaluation=none")
    done = train(folder / "run", *given)
    assert done.code == 0, done.errors
    assert done.result["kept_layers"] == list(range(8))
    assert (done.final / "model.safetensors").is_file()
    assert (done.metrics["eval_loss"] is None) == (strategy == "no")


def test_old_reaches_the_jobs_of_a_launcher(folder: Path) -> None:
    path = child(folder, "model_type: dropped\nuse_lora: true\n")
    sweep = (f"hydra.sweep.dir={folder / 'sweep'}", "hydra/launcher=submitit_local")
    given = ("model.layer_to_drop=2,99", "output_dir=${run_dir}/kept", "max_steps=1", *sweep)
    done = train(folder / "run", "--multirun", f"--old={path}", *given, "evaluation=none")
    assert done.code == 1  # the second job's layer is not there
    results = [json.loads((folder / "sweep" / n / "result.json").read_text()) for n in "01"]
    assert [result["status"] for result in results] == ["completed", "failed"]
    assert results[0]["kept_layers"] == [0, 1, *range(3, 12)]
    assert results[1]["error"].startswith("model.layer_to_drop=99, but the model has 12 layers")
