"""The operations of training, against torch's counter and arithmetic by hand, and known peaks."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config

from lamina.depth.reduction import blueprint
from lamina.measure.speed import compute_peak, peak_flops, training_flops
from tests.architectures import ARCHITECTURES

ROWS, LENGTH = 2, 24


def model_of(architecture: str, **adapter: Any) -> Any:
    """A tiny model whose attention multiplies every pair of tokens, so that all are counted."""
    config = AutoConfig.for_model(architecture, **ARCHITECTURES[architecture])
    eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model = AutoModelForCausalLM.from_config(config, **eager).train()
    if adapter:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, **adapter))
    return model


def counted(model: Any) -> int:
    """What torch counts of one forward and backward pass, without the tables of angles.

    transformers 5.17 makes these with a matrix product, 5.24 does not.
    """
    ids = torch.randint(3, 60, (ROWS, LENGTH))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    modules = counter.get_flop_counts().items()
    angles = [sum(flops.values()) for name, flops in modules if name.endswith(".rotary_emb")]
    return counter.get_total_flops() - sum(angles)


def by_formula(model: Any) -> float:
    flops, tokens = training_flops(model), ROWS * LENGTH
    return flops.of(tokens, tokens, dict.fromkeys(flops.per_pair, tokens * LENGTH))


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma3_text", "phi3", "gpt2"])
@pytest.mark.parametrize("adapter", [{}, {"target_modules": "all-linear"}], ids=["full", "lora"])
def test_every_operation_that_torch_counts_is_in_the_formula(
    architecture: str, adapter: dict[str, Any]
) -> None:
    model = model_of(architecture, **adapter)
    assert by_formula(model) == counted(model)


PARTS = {
    "gates": {"target_modules": ["gate_proj"]},
    "outputs": {"target_modules": ["o_proj", "down_proj"]},
    "upper layers": {"target_modules": ["q_proj", "k_proj", "v_proj"], "layers_to_transform": [4]},
}


@pytest.mark.parametrize("part", PARTS)
def test_nothing_is_counted_backward_below_the_lowest_adapter(part: str) -> None:
    model = model_of("qwen3", **PARTS[part])
    assert by_formula(model) == counted(model)


def test_only_the_last_layers_are_trained() -> None:
    model = model_of("qwen3").requires_grad_(False)
    model.model.layers[4:].requires_grad_(True)
    model.model.layers[4].input_layernorm.requires_grad_(False)
    assert by_formula(model) == counted(model)


@pytest.mark.parametrize("architecture", ["qwen3_moe", "gpt_oss"])
def test_only_active_experts_count(architecture: str) -> None:
    model = model_of(architecture)
    assert by_formula(model) == counted(model)


@pytest.mark.parametrize(
    ("architecture", "experts", "active"),
    [
        ("hunyuan_v1_moe", "num_experts", "moe_topk"),
        ("aria_text", "moe_num_experts", "moe_topk"),
        ("qwen3_moe", "num_experts", "num_experts_per_tok"),
    ],
)
def test_a_token_passes_through_the_active_experts_under_any_name(
    architecture: str, experts: str, active: str
) -> None:
    def counts(given: Any) -> int:
        shape = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 8, "head_dim": 8}
        shape |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
        shape |= {"moe_intermediate_size": 8, "pad_token_id": 0, "eos_token_id": 2}
        config = AutoConfig.for_model(architecture, **shape, **{experts: 4, active: given})
        with torch.device("meta"):
            return training_flops(AutoModelForCausalLM.from_config(config)).per_token

    expert = 6 * 3 * 16 * 8
    one, two = counts(1), counts(2)
    assert two - one == 2 * expert
    if architecture == "hunyuan_v1_moe":  # Hunyuan-A13B says it of each layer
        assert counts([1, 2]) == one + expert


def test_attention_counts_each_visible_pair_once() -> None:
    flops = training_flops(model_of("qwen3"))
    assert flops.per_pair == {None: 3 * 12 * 4 * 4, 4: 3 * 12 * 4 * 4}
    assert flops.of(0, 0, {None: 10, 4: 0}) == 10 * 3 * 12 * 4 * 4


QWEN3_8B = {
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 12_288,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": False,
}
"""Its layer: 2 x 4096 x 4096 for queries and outputs, 2 x 4096 x 1024 for keys and values, and
3 x 4096 x 12,288 behind them: 192,937,984 weights."""


def test_full_training_of_qwen3_8b_cut_to_24_layers() -> None:
    model = blueprint(Qwen3Config(**QWEN3_8B, num_hidden_layers=24))
    flops = training_flops(model)
    assert flops.per_token == 6 * 24 * 192_937_984
    assert flops.per_target == 6 * 4096 * 151_936
    assert flops.per_pair == {None: 12 * 24 * 4096}
    # A pack of 4096 tokens: one document, and then four of 1024.
    one, four = 4096 * 4097 // 2, 4 * 1024 * 1025 // 2
    layers, head, attention = 113.7994535e12, 15.2906446e12, 9.8980206e12
    assert flops.of(4096, 4095, {None: one}) == pytest.approx(layers + head + attention, rel=1e-7)
    head, attention = 15.2794426e12, 2.4763171e12
    assert flops.of(4096, 4092, {None: four}) == pytest.approx(layers + head + attention, rel=1e-7)


def test_qwen3_8b_with_an_adapter_of_rank_16() -> None:
    model = blueprint(Qwen3Config(**QWEN3_8B, num_hidden_layers=36))
    adapted = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
    flops = training_flops(adapted)
    adapter = 43_646_976
    assert adapter == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    # Queries, keys and values of the first layer read frozen embeddings: no gradient goes there.
    lowest = 2 * (4096 * 4096 + 2 * 4096 * 1024) + 2 * 3 * 16 * 4096
    assert flops.per_token == 4 * 36 * 192_937_984 + 6 * adapter - lowest
    assert flops.per_target == 4 * 4096 * 151_936
    assert flops.per_pair == {None: 12 * 36 * 4096}


@pytest.mark.parametrize(
    ("device", "tera"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3090", 71),
        ("NVIDIA B200", 2250),
    ],
)
def test_a_known_device_has_its_dense_bfloat16_peak(device: str, tera: float) -> None:
    assert peak_flops(device, "bfloat16") == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    "device",
    [
        "NVIDIA A10G",
        "NVIDIA L40",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "AMD Instinct MI300X",
    ],
)
def test_a_device_with_a_similar_name_has_no_peak(device: str) -> None:
    assert peak_flops(device, "bfloat16") is None


def test_each_type_has_its_own_peak_or_none() -> None:
    assert peak_flops("NVIDIA H200", "tf32") == pytest.approx(494.7e12)
    assert peak_flops("NVIDIA H200", "float32") == pytest.approx(66.9e12)
    assert peak_flops("Tesla V100-SXM2-16GB", "float16") == 125e12
    assert peak_flops("Tesla V100-SXM2-16GB", "bfloat16") is None


@pytest.mark.parametrize(
    ("bf16", "fp16", "weights", "precision", "tera"),
    [
        (True, False, "float32", "highest", 989.4),
        (False, True, "float32", "highest", 989.4),
        (False, False, "bfloat16", "highest", 989.4),
        (False, False, "float32", "high", 494.7),
        (False, False, "float32", "highest", 66.9),
    ],
)
def test_the_peak_is_that_of_the_compute_type(
    bf16: bool,
    fp16: bool,
    weights: str,
    precision: str,
    tera: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr("torch.get_float32_matmul_precision", lambda: precision)
    assert compute_peak(bf16=bf16, fp16=fp16, weights=weights) == pytest.approx(tera * 1e12)


def test_without_an_accelerator_there_is_no_peak() -> None:
    assert compute_peak(bf16=False, fp16=False, weights="float32") is None
