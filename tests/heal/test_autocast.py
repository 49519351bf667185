"""Under autocast an adapter's input is cast once: equal losses, less memory."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig

from lamina.heal.trainer import TokenLossTrainer
from tests.conftest import REFERENCE

ROWS = Dataset.from_list(
    [{"input_ids": list(range(s, s + 60)), "labels": list(range(s, s + 60))} for s in range(4, 20)]
)


class Watch(TrainerCallback):
    """Notes the losses, and whether PEFT casts at the end of a step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.casts: set[bool] = set()

    def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
        adapted = (each for each in model.modules() if isinstance(each, BaseTunerLayer))
        self.casts |= {each.cast_input_dtype_enabled for each in adapted}

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        self.losses += [logs["loss"]] if "loss" in logs else []


def trained(folder: Path, *, bf16: bool, dora: bool) -> tuple[Watch, int, dict[str, Any]]:
    """Train three steps; return what was seen, the bytes kept for backward, and the adapter."""
    watch, kept, first = Watch(), dict[int, int](), [True]
    arguments = SFTConfig(
        output_dir=str(folder), max_steps=3, logging_steps=1, save_strategy="no", seed=1,
        report_to="none", bf16=bf16, use_cpu=True, gradient_checkpointing=False, packing=True,
        max_length=64, per_device_train_batch_size=2, disable_tqdm=True, learning_rate=1e-2,
    )  # fmt: skip
    torch.manual_seed(1)
    trainer = TokenLossTrainer(
        model=AutoModelForCausalLM.from_pretrained(REFERENCE, dtype=torch.bfloat16),
        args=arguments,
        processing_class=AutoTokenizer.from_pretrained(REFERENCE),
        train_dataset=ROWS,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM", r=4, target_modules="all-linear", use_dora=dora
        ),
        callbacks=[watch],
    )

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept.update({storage.data_ptr(): storage.nbytes()} if first[0] else {})
        return tensor

    def give(tensor: torch.Tensor) -> torch.Tensor:
        first[0] = False  # the first backward pass has begun: memory is used again from here on
        return tensor

    with saved_tensors_hooks(keep, give):
        trainer.train()
    adapted = (each for each in trainer.model.modules() if isinstance(each, BaseTunerLayer))
    assert all(each.cast_input_dtype_enabled for each in adapted), "put back after the training"
    weights = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if "lora_" in n}
    return watch, sum(kept.values()), weights


def test_training_is_equal_to_the_last_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once, kept, weights = trained(tmp_path, bf16=True, dora=False)
    monkeypatch.setattr(
        "lamina.heal.trainer.disable_input_dtype_casting", lambda *_, **__: nullcontext()
    )
    twice, kept_before, weights_before = trained(tmp_path, bf16=True, dora=False)
    assert (once.casts, twice.casts) == ({False}, {True})
    assert once.losses == twice.losses
    assert len(once.losses) == 3
    assert all(torch.equal(weights[name], weights_before[name]) for name in weights)
    assert kept < kept_before


@pytest.mark.parametrize(("bf16", "dora"), [(False, False), (True, True)])
def test_peft_casts_without_autocast_and_with_dora(bf16: bool, dora: bool, tmp_path: Path) -> None:
    watch, _, _ = trained(tmp_path, bf16=bf16, dora=dora)
    assert watch.casts == {True}
