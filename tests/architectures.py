"""Tiny random models of every supported architecture, with mixed layer types where it has them."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

NUM_LAYERS = 6

SIZE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen3": {
        **SIZE,
        "head_dim": 4,
        "sliding_window": 4,
        "use_sliding_window": True,
        "max_window_layers": 3,
    },
    "qwen2": {**SIZE, "tie_word_embeddings": True},
    "qwen3_moe": {
        **SIZE,
        **EXPERTS,
        "head_dim": 4,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [1],
    },
    "qwen3_next": {
        **SIZE,
        **EXPERTS,
        "head_dim": 4,
        "linear_key_head_dim": 4,
        "linear_value_head_dim": 4,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "shared_expert_intermediate_size": 8,
        "full_attention_interval": 3,
        "mlp_only_layers": [1, 4],
    },
    "llama": {**SIZE},
    "mistral": {**SIZE, "sliding_window": 4},
    "gemma3_text": {**SIZE, "head_dim": 4, "sliding_window": 4, "sliding_window_pattern": 3},
    "gpt_oss": {
        **SIZE,
        "head_dim": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 4,
    },
    "smollm3": {
        **SIZE,
        "no_rope_layer_interval": 3,
        "use_sliding_window": True,
        "sliding_window": 4,
    },
    "olmo3": {**SIZE, "sliding_window": 4},
    "phi3": {**SIZE, "original_max_position_embeddings": 64},
    "gpt_neox": {k: v for k, v in SIZE.items() if k != "num_key_value_heads"},
    "gpt2": {
        "vocab_size": 64,
        "n_embd": 16,
        "n_layer": NUM_LAYERS,
        "n_head": 4,
        "n_positions": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "mamba2": {
        "vocab_size": 64,
        "hidden_size": 16,
        "num_hidden_layers": NUM_LAYERS,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "num_heads": 8,
        "head_dim": 4,
        "n_groups": 2,
        "state_size": 8,
        "chunk_size": 4,
    },
    "falcon_h1": {
        **SIZE,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 8,
        "mamba_n_groups": 2,
        "mamba_d_state": 8,
        "mamba_chunk_size": 4,
    },
    "mpt": {
        "vocab_size": 64,
        "d_model": 16,
        "n_layers": NUM_LAYERS,
        "n_heads": 4,
        "max_seq_len": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}
"""Keyword arguments of each model type's config."""

LINEAR = {
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "full_attention_interval": 2,
}
TEXT = {**SIZE, "head_dim": 8}
QWEN_VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 16,
    "num_position_embeddings": 16,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
}

MULTIMODAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen3_5": ({**TEXT, **LINEAR}, QWEN_VISION),
    "qwen3_5_moe": (
        {**TEXT, **LINEAR, **EXPERTS, "shared_expert_intermediate_size": 8},
        QWEN_VISION,
    ),
    "qwen3_vl": ({**TEXT}, {**QWEN_VISION, "deepstack_visual_indexes": [0]}),
    "qwen3_vl_moe": (
        {**TEXT, **EXPERTS, "moe_intermediate_size": 12, "mlp_only_layers": [1]},
        {**QWEN_VISION, "deepstack_visual_indexes": [0]},
    ),
    "gemma3": (
        {**TEXT, "sliding_window": 4, "sliding_window_pattern": 3},
        {**VISION, "patch_size": 14},
    ),
    "mistral3": ({**TEXT}, {**VISION, "head_dim": 8}),
    "llama4": (
        {
            **TEXT,
            "intermediate_size_mlp": 24,
            "num_local_experts": 4,
            "attention_chunk_size": 4,
            "interleave_moe_layer_step": 2,
        },
        {
            **VISION,
            "intermediate_size": 64,
            "patch_size": 14,
            "vision_output_dim": 16,
            "projector_input_dim": 16,
            "projector_output_dim": 16,
        },
    ),
}
"""Keyword arguments of each multimodal model type's text_config and vision_config."""

NAMES = {
    "qwen3": "Qwen3",
    "qwen2": "Qwen2",
    "qwen3_moe": "Qwen3-MoE",
    "qwen3_next": "Qwen3-Next",
    "llama": "Llama",
    "mistral": "Mistral",
    "gemma3_text": "Gemma 3",
    "gpt_oss": "gpt-oss",
    "smollm3": "SmolLM3",
    "olmo3": "OLMo 3",
    "phi3": "Phi-3",
    "gpt_neox": "GPT-NeoX",
    "gpt2": "GPT-2",
    "mamba2": "Mamba-2",
    "falcon_h1": "Falcon-H1",
    "mpt": "MPT",
    "qwen3_5": "Qwen3.5",
    "qwen3_5_moe": "Qwen3.5-MoE",
    "qwen3_vl": "Qwen3-VL",
    "qwen3_vl_moe": "Qwen3-VL-MoE",
    "gemma3": "Gemma 3 from 4B",
    "mistral3": "Mistral 3",
    "llama4": "Llama 4",
}
"""What people call each model type; docs/layers.md lists them."""


def build(model_type: str, **changes: Any) -> PreTrainedModel:
    """A model with random weights, large enough that every layer matters."""
    torch.manual_seed(0)
    if model_type in MULTIMODAL:
        text, vision = MULTIMODAL[model_type]
        parts = {"text_config": {**text, **changes}, "vision_config": vision}
        config = AutoConfig.for_model(model_type, **parts)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    else:
        config = AutoConfig.for_model(model_type, **{**ARCHITECTURES[model_type], **changes})
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def save(model_type: str, folder: Path, *, max_shard_size: str = "5GB", **changes: Any) -> Path:
    """The same, saved by transformers."""
    build(model_type, **changes).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder
