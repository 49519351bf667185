"""The kinds of a model's layers, such as linear_attention, and the layout of hybrids."""

from itertools import groupby
from typing import Any

from lamina.depth.surgery import layer_count, with_cadences

KIND_FIELDS = ("layer_types", "layers_block_type", "hybrid_override_pattern", "mlp_layer_types")
"""The lists of config.json that name each layer's kind."""

MISREAD_IF_UNEVEN = frozenset({"qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"})
"""Values of model_type whose kinds some engines compute from full_attention_interval alone, or from
its default."""

MISREAD = (
    " (uneven: llama.cpp before September 2026 and Megatron-Bridge before July 2026 assign the "
    "wrong kind to some layers)"
)


def layer_kinds(config: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the kinds of each layer; empty tuples if config.json names none."""
    num_layers = layer_count(config)
    full = with_cadences(config, num_layers)
    lists = [full[field] for field in KIND_FIELDS if len(full.get(field) or ()) == num_layers]
    return [tuple(str(entries[index]) for entries in lists) for index in range(num_layers)]


def layout(config: dict[str, Any]) -> str | None:
    """Describe the order of the kinds of a hybrid's layers; None if all layers are alike."""
    kinds = ["+".join(each) for each in layer_kinds(config)]
    if len(set(kinds)) < 2:
        return None
    runs = [(len(list(group)), kind) for kind, group in groupby(kinds)]
    every = runs[0][0] + 1
    others, nth = kinds[0], kinds[every - 1]
    if kinds == [others if (i + 1) % every else nth for i in range(len(kinds))]:
        return f"{every - 1} {others}, 1 {nth}, repeated over {len(kinds)} layers"
    warning = MISREAD if config.get("model_type") in MISREAD_IF_UNEVEN else ""
    return ", ".join(f"{length} {kind}" for length, kind in runs) + warning
