"""The text part of a multimodal model, as a model of its own: its config.json and tensor names.

A checkpoint of such a model nests the language model's config under `text_config` and prefixes the
names of its tensors. Everything else (vision, multi-token prediction) is left out. Imports no
torch.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from lamina.weights.header import StoredTensor

TEXT_MODELS: dict[str, dict[str, str]] = {
    "qwen3_5": {"qwen3_5_text": "qwen3_5_text"},
    "qwen3_5_moe": {"qwen3_5_moe_text": "qwen3_5_moe_text"},
    "qwen3_vl": {"qwen3_vl_text": "qwen3"},
    "qwen3_vl_moe": {"qwen3_vl_moe_text": "qwen3_moe"},
    "gemma3": {"gemma3_text": "gemma3_text"},
    "mistral3": {"mistral": "mistral", "ministral3": "ministral3"},
    "llama4": {"llama4_text": "llama4_text"},
}
"""For each multimodal model_type: the model_types that its `text_config` may have (the first if it
names none), each with the model_type of that text model on its own. On text, Qwen3-VL's rotary
embedding is Qwen3's, and DeepStack adds nothing."""

CLASSES = {
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "llama4_text": "Llama4ForCausalLM",
}
"""The value of `architectures` for each text model."""

TIED = frozenset({"gemma3", "mistral3"})
"""Model types that tie embedding and head unless their config.json says otherwise."""

INHERITED = (
    "bos_token_id eos_token_id pad_token_id dtype torch_dtype quantization_config "
    "transformers_version"
).split()
"""Fields that may stand beside `text_config` instead of in it."""

MTP_COUNT = "mtp_num_hidden_layers"

_TEXT_NAME = re.compile(r"(?:model\.)?language_model\.(?:model\.)?(?P<rest>.+)")
_PLAIN_NAME = re.compile(r"lm_head\.|model\.(?:layers|embed_tokens|norm)\.")
_EXPERTS = re.compile(r"(?P<prefix>.+\.experts)\.(?P<kind>gate_up_proj|down_proj)$")
_EXPERT = re.compile(r".+\.experts\.(?P<index>\d+)\.(?P<kind>gate|up|down)_proj\.weight$")


def text_config(whole: dict[str, Any]) -> dict[str, Any] | None:
    """Return the text model's config.json, or None if `TEXT_MODELS` lacks `whole`'s."""
    family, text = str(whole.get("model_type")), whole.get("text_config")
    if family not in TEXT_MODELS or not isinstance(text, dict):
        return None
    known = TEXT_MODELS[family]
    model_type = known.get(text.get("model_type") or next(iter(known)))
    if model_type is None:
        return None
    inherited = {field: whole[field] for field in INHERITED if whole.get(field) is not None}
    content = {
        **text,
        **{field: value for field, value in inherited.items() if text.get(field) is None},
        "architectures": [CLASSES[model_type]],
        "model_type": model_type,
        "tie_word_embeddings": whole.get("tie_word_embeddings", family in TIED),
    }
    if content.get(MTP_COUNT):
        content[MTP_COUNT] = 0
    return _as_qwen3(content) if model_type in ("qwen3", "qwen3_moe") else content


def _as_qwen3(content: dict[str, Any]) -> dict[str, Any]:
    """Spell out what Qwen3-VL leaves to defaults that differ from Qwen3's."""
    renamed = dict(content)
    for field in ("rope_scaling", "rope_parameters"):
        if isinstance(found := renamed.get(field), dict):
            renamed[field] = {k: v for k, v in found.items() if not k.startswith("mrope_")}
    if (rope := renamed.get("rope_parameters")) is not None:
        renamed["rope_parameters"] = {"rope_theta": 500000.0, **rope}
    else:
        renamed.setdefault("rope_theta", 500000.0)
    renamed.setdefault("max_position_embeddings", 128000)
    if renamed["model_type"] == "qwen3_moe":
        experts = renamed.pop("num_local_experts", None) or renamed.get("num_experts")
        head_dim = renamed["hidden_size"] // renamed["num_attention_heads"]
        renamed |= {"num_experts": experts, "norm_topk_prob": True}
        renamed.setdefault("head_dim", head_dim)
    return renamed


def text_names(stored: Iterable[str], config: dict[str, Any]) -> dict[str, str]:
    """Map the name of each tensor in the text model to its name in the checkpoint, one of `stored`.

    Several tensors of a Qwen3-MoE, one per expert, map to the one of Qwen3-VL that holds them all.
    """
    names: dict[str, str] = {}
    for name in stored:
        if match := _TEXT_NAME.fullmatch(name):
            rest = match["rest"]
            text = rest if rest.startswith("lm_head.") else f"model.{rest}"
        elif _PLAIN_NAME.match(name):
            text = name
        else:
            continue
        fused = _EXPERTS.match(text) if config["model_type"] == "qwen3_moe" else None
        if fused is None:
            names[text] = name
            continue
        for kind in ("gate", "up") if fused["kind"] == "gate_up_proj" else ("down",):
            for expert in range(config["num_experts"]):
                names[f"{fused['prefix']}.{expert}.{kind}_proj.weight"] = name
    return names


def text_tensor(name: str, stored: StoredTensor, config: dict[str, Any]) -> StoredTensor:
    """Return a tensor of the text model by its name there; one expert's is a part of `stored`."""
    match = _EXPERT.match(name) if len(stored.shape) == 3 else None
    if match is None:
        return stored
    inner, outer = config["moe_intermediate_size"], config["hidden_size"]
    shape = (outer, inner) if match["kind"] == "down" else (inner, outer)
    per_element = stored.nbytes // stored.size
    first_row = inner if match["kind"] == "up" else 0
    begin = stored.begin + int(match["index"]) * stored.nbytes // stored.shape[0]
    whole = (outer, inner) if match["kind"] == "down" else (2 * inner, outer)
    if stored.shape[1:] == whole:  # transformers, too, transposes only where the shapes differ
        return replace(stored, shape=shape, begin=begin + first_row * outer * per_element)
    begin += first_row * per_element
    return replace(stored, shape=shape, begin=begin, columns=whole[0])
