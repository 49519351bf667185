"""torch_compile=true on a CPU: the same losses, and final/ as without it."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.conftest import SHORT, Finished, train

ONE_LAYER = (
    *SHORT,
    "model.keep_layers=1",
    "max_seq_length=64",
    "max_steps=1",
    "eval_steps=1",
    "save_steps=1",
    "generator.train_rows=40",
    "generator.eval_rows=10",
    "per_device_eval_batch_size=10",
    "logger=none",
)
"""The compiler takes a minute for eight layers, and begins again with a batch of another shape."""


def losses(done: Finished) -> list[float]:
    history = [value for e in done.result["history"] for value in (e["loss"], e["eval_loss"])]
    return [*history, done.metrics["eval_loss"]]


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler: install g++")
def test_a_compiled_training_has_the_same_losses_and_names(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", *ONE_LAYER, "adapter=full", "learning_rate=1e-3")
    compiled = train(
        tmp_path / "run", *ONE_LAYER, "adapter=full", "learning_rate=1e-3", "torch_compile=true"
    )
    assert compiled.code == 0, compiled.errors
    assert compiled.result["settings"]["trainer.args.torch_compile"] is True
    assert losses(compiled) == pytest.approx(losses(plain), abs=1e-4)
    names = load_file(compiled.final / "model.safetensors")
    assert not [name for name in names if "_orig_mod" in name]
    _, info = AutoModelForCausalLM.from_pretrained(compiled.final, output_loading_info=True)
    assert not any(info.values()), info
