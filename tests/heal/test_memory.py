"""When memory is short: the next settings to try, in order, with what each saves."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from lamina.depth.loading import load_model
from lamina.depth.quantization import QUANTIZED_BYTES
from lamina.depth.reduction import reduction
from lamina.heal.adapters import Full, QLora
from lamina.heal.memory import MemoryEstimate, advice, loading_advice, savings
from lamina.weights.source import resolve
from tests.conftest import REFERENCE

# Qwen3-8B's shape with 24 of 36 layers, LoRA of rank 16, one pack of 4096 at a time.
LINEAR = 24 * (4096 * (4096 + 1024 + 1024 + 4096) + 3 * 4096 * 12288)
LORA = MemoryEstimate(
    parameters=LINEAR + 2 * 151936 * 4096,
    weights=2 * (LINEAR + 2 * 151936 * 4096),
    teacher=0,
    linear_weights=LINEAR,
    linear_bytes=2,
    trained=29_097_984,
    trained_bytes=4,
    hidden=4096,
    intermediate=12288,
    layers=24,
    differentiated=24,
    vocabulary=151936,
    computed_bytes=2,
    batch=4,
    accumulation=4,
    length=4096,
    adapter="lora",
    optim="adamw_torch_fused",
    checkpointing=False,
    offloading=False,
    chunked_loss=True,
    masked=False,
    gpus=1,
    sharded=False,
    installed=frozenset({"bitsandbytes", "liger_kernel"}),
)
FULL = replace(LORA, adapter="full", trained=LORA.weights // 2, trained_bytes=2, gpus=8)


def settings(estimate: MemoryEstimate) -> list[str]:
    return [setting for setting, _ in savings(estimate)]


def test_the_next_three_settings_are_named_with_what_they_save() -> None:
    # 16,384 tokens x 24 layers x (8 x 4096 + 4 x 12288) values x 2 bytes = 64.4 GB
    assert advice(LORA) == (
        "try, in this order: per_device_train_batch_size=2 gradient_accumulation_steps=8 (saves "
        "about 32.2 GB); gradient_checkpointing=true (saves about 58.5 GB); "
        "activation_offloading=true (saves about 64.4 GB)"
    )


def test_the_cheapest_come_first_and_those_that_change_results_last() -> None:
    estimate = replace(LORA, chunked_loss=False, masked=True, computed_bytes=4)
    assert settings(estimate) == [
        "kernels=liger",
        "per_device_train_batch_size=2 gradient_accumulation_steps=8",
        "gradient_checkpointing=true",
        "activation_offloading=true",
        "bf16=true",
        "adapter=qlora",
        "max_seq_length=2048",
        "one layer fewer",
    ]


def test_liger_saves_all_logits() -> None:
    saved = dict(savings(replace(LORA, chunked_loss=False)))
    # In bfloat16, and in float32 with a gradient in float32.
    assert saved["kernels=liger"] == 4 * 4096 * 151936 * (2 + 4 + 4)


def test_bfloat16_halves_activations_but_not_the_float32_logits() -> None:
    single = replace(LORA, computed_bytes=4)
    assert dict(savings(single))["bf16=true"] == single.activations / 2
    values = 4 * 4096 * 151936
    unchunked = replace(single, chunked_loss=False)
    assert dict(savings(unchunked))["bf16=true"] == single.activations / 2 + values * 2


def test_attention_auto_saves_the_mask() -> None:
    estimate = replace(LORA, masked=True, batch=16, checkpointing=True)
    assert dict(savings(estimate))["attention=auto"] == (16 * 4096) ** 2


def test_each_trained_weight_has_a_gradient_and_two_optimizer_values() -> None:
    saved = dict(savings(FULL))
    count = FULL.trained
    assert saved["parallel=fsdp"] == round(count * 2 * 4 * 7 / 8)
    assert saved["optim=paged_adamw_8bit"] == count * 4
    assert saved["adapter=lora"] == count * 6
    assert "adapter=qlora" not in saved


def test_layers_before_the_first_trained_one_keep_nothing() -> None:
    partial = replace(LORA, adapter="partial", differentiated=3)
    assert partial.activations == LORA.activations // 8
    assert "adapter=qlora" not in settings(partial)


def test_an_8_bit_optimizer_takes_two_bytes_per_weight() -> None:
    eight = replace(FULL, optim="adamw_8bit")
    assert eight.optimizer == 2 * FULL.trained
    assert dict(savings(eight))["optim=paged_adamw_8bit"] == 2 * FULL.trained


def test_settings_in_use_or_unavailable_are_left_out() -> None:
    poor = replace(
        FULL,
        batch=1,
        checkpointing=True,
        offloading=True,
        sharded=True,
        chunked_loss=False,
        installed=frozenset(),
    )
    assert settings(poor) == ["adapter=lora", "max_seq_length=2048", "one layer fewer"]
    processor = replace(LORA, gpus=0, masked=True, chunked_loss=False, computed_bytes=2)
    assert settings(processor) == [
        "per_device_train_batch_size=2 gradient_accumulation_steps=8",
        "gradient_checkpointing=true",
        "adapter=qlora",
        "max_seq_length=2048",
        "one layer fewer",
    ]
    assert "adapter=qlora" not in settings(replace(processor, adapter="qlora"))


@pytest.mark.parametrize(("batch", "fewer", "more"), [(2, 1, 8), (3, 1, 12), (6, 3, 8), (9, 3, 12)])
def test_the_effective_batch_stays(batch: int, fewer: int, more: int) -> None:
    given = f"per_device_train_batch_size={fewer} gradient_accumulation_steps={more}"
    assert given in settings(replace(LORA, batch=batch))


def test_a_model_that_does_not_load_gets_advice() -> None:
    assert loading_advice(LORA) == (
        "try, in this order: adapter=qlora (saves about 6.87 GB); one layer fewer (saves about 490 "
        "MB)"
    )
    wide = replace(LORA, linear_bytes=4, weights=2 * LORA.weights, installed=frozenset())
    assert loading_advice(wide).startswith("try, in this order: dtype=bfloat16 (saves about 11.8")
    packed = replace(wide, adapter="qlora", weights=round(LINEAR * QUANTIZED_BYTES) + 4 * 10**8)
    assert loading_advice(packed).startswith("try, in this order: dtype=bfloat16 (saves about 200")


def test_an_estimate_follows_from_the_model_and_the_arguments() -> None:
    arguments = {
        "bf16": False,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "max_length": 512,
        "optim": "sgd",
        "gradient_checkpointing": True,
        "activation_offloading": False,
        "packing": True,
    }
    given: dict[str, Any] = {"dtype": torch.float32, "liger": False, "sharded": False}
    model = load_model(resolve(str(REFERENCE)), range(8), dtype=torch.float32)
    estimate = MemoryEstimate.of(model, arguments, Full(learning_rate=2e-5), **given)
    assert (estimate.weights, estimate.trained, estimate.linear_weights) == (
        4 * 1_223_424,
        1_223_424,
        1_179_648,
    )
    assert (estimate.hidden, estimate.intermediate) == (128, 256)
    assert (estimate.layers, estimate.vocabulary) == (8, 321)
    assert estimate.masked
    assert estimate.chunked_loss
    assert estimate.mask == (2 * 512) ** 2
    assert estimate.activations == 1024 * (8 * 128 + 8 * 128 + 4 * 256) * 4
    removed = 4 * (1_223_424 - 321 * 128 - 128) // 8
    taught, read = (
        MemoryEstimate.of(model, arguments, Full(learning_rate=2e-5), taught=own, **given)
        for own in ((removed, removed + 1_223_424), (removed + 1_223_424, removed + 1_223_424))
    )
    assert taught.teacher == 4 * (removed + 1_223_424)  # the removed layers, and what is trained
    assert read.teacher == taught.teacher  # what is its own already is not copied
    assert taught.total == estimate.total + taught.teacher
    bare = reduction(resolve(str(REFERENCE)), range(8)).blueprint
    lora: dict[str, Any] = {
        "learning_rate": 2e-4,
        "r": 1,
        "alpha": 1,
        "dropout": 0.0,
        "bias": "none",
    }
    quantized = QLora(**lora, target_modules="all-linear", further={})
    less = MemoryEstimate.of(bare, arguments, quantized, **given)
    assert less.weights == round(1_179_648 * QUANTIZED_BYTES) + 4 * (1_223_424 - 1_179_648)
