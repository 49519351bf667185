"""Tiny random models of every supported architecture, with mixed layer types where it has them."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

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
}
"""Keyword arguments of each model type's config."""


def build(model_type: str, **changes: Any) -> PreTrainedModel:
    """A model with random weights, large enough that every layer matters."""
    torch.manual_seed(0)
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
