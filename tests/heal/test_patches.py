"""Each patch of a library is still needed: one of these tests fails once it can go.

tests/heal/test_autocast.py holds the one of PEFT.
"""

from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from packaging.version import Version
from torch.utils.data import BatchSampler
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from lamina.heal.backends.transformers import _not_adaptable
from tests.architectures import MULTIMODAL, SIZE, build
from tests.conftest import REFERENCE

ROWS = Dataset.from_list(
    [{"input_ids": list(range(4, end)), "labels": list(range(4, end))} for end in (8, 60, 9, 58)]
)


def stock(folder: Path, **options: Any) -> SFTTrainer:
    arguments = SFTConfig(
        output_dir=str(folder), report_to="none", bf16=False, use_cpu=True, max_length=64,
        disable_tqdm=True, gradient_checkpointing=False, **options,
    )  # fmt: skip
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(REFERENCE, dtype=torch.float32),
        args=arguments,
        processing_class=AutoTokenizer.from_pretrained(REFERENCE),
        train_dataset=ROWS,
        eval_dataset=ROWS,
    )


def loss(folder: Path, **options: Any) -> float:
    return stock(folder, **options).evaluate()["eval_loss"]


def test_eval_loss_of_transformers_depends_on_the_batch_size(tmp_path: Path) -> None:
    alone, together = (loss(tmp_path, per_device_eval_batch_size=size) for size in (1, 2))
    assert together != pytest.approx(alone, abs=1e-2)


@pytest.mark.parametrize("options", [{"label_smoothing_factor": 0.5}, {"loss_type": "dft"}])
def test_eval_loss_of_transformers_and_trl_depends_on_the_training_loss(
    options: dict[str, Any], tmp_path: Path
) -> None:
    plain = loss(tmp_path, loss_type="nll")
    assert loss(tmp_path, **{"loss_type": "nll", **options}) != pytest.approx(plain, abs=1e-2)


def test_transformers_takes_one_more_step_when_it_resumes_after_the_last(tmp_path: Path) -> None:
    options = {"max_steps": 2, "save_steps": 2, "per_device_train_batch_size": 1}
    stock(tmp_path, **options).train()
    resumed = stock(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 3


def test_transformers_writes_checkpoints_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError

    monkeypatch.setattr(SFTTrainer, "_save_optimizer_and_scheduler", fail)
    with pytest.raises(OSError):
        stock(tmp_path, max_steps=1, save_steps=1).train()
    assert (tmp_path / "checkpoint-1").is_dir()


def test_accelerate_repeats_rows_to_fill_the_last_batches() -> None:
    batches = BatchSampler(range(5), batch_size=2, drop_last=False)
    shards = (BatchSamplerShard(batches, 2, index) for index in range(2))
    rows = list(chain.from_iterable(chain.from_iterable(shards)))
    assert len(rows) > len(set(rows)) == 5


def test_llama_4_names_a_base_that_it_lacks_and_its_router_returns_two_values() -> None:
    config = AutoConfig.for_model("llama4_text", **MULTIMODAL["llama4"][0])
    model = AutoModelForCausalLM.from_config(config)
    assert model.base_model is model
    routers = [each for each in model.modules() if type(each).__name__ == "Llama4Router"]
    assert all(isinstance(each, torch.nn.Linear) for each in routers)
    assert isinstance(routers[0](torch.ones(1, config.hidden_size)), tuple)
    assert _not_adaptable(model) == ["router"]


def test_falcons_own_linear_layers_return_one_value_and_are_adapted() -> None:
    config = AutoConfig.for_model("falcon", **{**SIZE, "num_hidden_layers": 1})
    assert _not_adaptable(AutoModelForCausalLM.from_config(config)) == []
    config = AutoConfig.for_model("phimoe", **{**SIZE, "num_hidden_layers": 1})
    assert _not_adaptable(AutoModelForCausalLM.from_config(config)) == ["router"]


@pytest.mark.skipif(
    Version(version("transformers")) >= Version("5.24"),
    reason="transformers 5.24 generates with a cache and router logits; constraints.txt has 5.17",
)
def test_trl_turns_on_router_logits_with_which_a_cache_fails() -> None:
    """See `save_final`."""
    model = build("qwen3_moe")
    model.config.output_router_logits = True
    ids = torch.arange(3, 9).repeat(2, 1)
    with pytest.raises(RuntimeError, match="size of tensor"):
        model.generate(ids, use_cache=True, max_new_tokens=2, min_new_tokens=2)
