"""Packed documents do not see each other, or training does not start."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from lamina.errors import ConfigError
from lamina.heal.packing import refuse_leaking_packs
from tests.architectures import save
from tests.conftest import REFERENCE

ROWS = Dataset.from_list([{"input_ids": list(range(start, start + 20))} for start in (3, 30)])


def trainer(folder: Path, *, padding_free: bool = True, attention: str = "sdpa") -> Any:
    """The parts of a trainer that the check uses, with a real model and TRL's collator."""
    return SimpleNamespace(
        model=AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention
        ),
        data_collator=DataCollatorForLanguageModeling(pad_token_id=0, padding_free=padding_free),
        args=SimpleNamespace(device="cpu"),
    )


@pytest.mark.parametrize("name", ["qwen3", "gemma3_text", "olmo3", "qwen3_moe"])
def test_documents_stay_apart(name: str, tmp_path: Path) -> None:
    refuse_leaking_packs(trainer(save(name, tmp_path)), ROWS)


def test_documents_stay_apart_with_an_adapter() -> None:
    probed = trainer(REFERENCE)
    probed.model = get_peft_model(probed.model, LoraConfig(target_modules="all-linear"))
    probed.model.train()
    refuse_leaking_packs(probed, ROWS)
    assert probed.model.training


def test_a_collator_that_ignores_documents_is_refused() -> None:
    message = (
        r"^packing=True: packed documents would see each other in this model \(qwen3, attention "
        r"sdpa: other tokens in the first change the second's logits by [0-9.]+ of the largest\); "
        r"set packing=false$"
    )
    with pytest.raises(ConfigError, match=message):
        refuse_leaking_packs(trainer(REFERENCE, padding_free=False), ROWS)


def test_a_model_with_state_across_documents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\(qwen3_next, attention sdpa.* set packing=false"):
        refuse_leaking_packs(trainer(save("qwen3_next", tmp_path)), ROWS)


def test_what_a_library_refuses_to_pack_is_refused_in_one_line() -> None:
    probed = trainer(REFERENCE)

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("a kernel is missing.\nInstall it.")

    probed.model.forward = refuse
    with pytest.raises(ConfigError) as refused:
        refuse_leaking_packs(probed, ROWS)
    assert str(refused.value) == (
        "packing=True: this model (qwen3, attention sdpa) cannot keep packed documents apart: a "
        "kernel is missing; or set packing=false"
    )


def test_documents_of_a_single_token_are_enough() -> None:
    rows = Dataset.from_list([{"input_ids": [5]}])
    refuse_leaking_packs(trainer(REFERENCE), rows)
    with pytest.raises(ConfigError, match="would see each other"):
        refuse_leaking_packs(trainer(REFERENCE, padding_free=False), rows)
