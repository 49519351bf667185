"""The smaller model's config from the larger one's: exact, or refused.

Every config field about layers must follow the kept ones: the count, lists with one entry per
layer, lists of layer indices, thresholds and cadences. A stale field raises late or, worse, changes
the model silently. This module knows what each field means, and refuses by name an unknown one that
may be about layers.
"""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from lamina.errors import ModelError
from lamina.weights.source import refuse_mistyped
from lamina.weights.text_part import TEXT_MODELS

COUNT_FIELDS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""The architectures' names for their number of decoder layers."""

PER_LAYER_FIELDS = frozenset(
    """layer_types mlp_layer_types no_rope_layers layers_block_type hybrid_override_pattern
    attention_layers num_key_value_heads_per_layer num_attention_heads_per_layer""".split()
)
"""Lists or strings with one entry per layer: sliced by the kept indices."""

INDEX_FIELDS = frozenset({"mlp_only_layers", "full_attn_idxs", "attn_layer_indices", "moe_layers"})
"""Lists of 0-based layer indices: dropped ones go, the others are renumbered."""

THRESHOLD_FIELDS = frozenset({"max_window_layers", "first_k_dense_replace", "num_dense_layers"})
"""Indices that split the layers into those below and those from there on: recounted."""

CADENCES: dict[str, tuple[str, Any, Any]] = {
    "full_attention_interval": ("layer_types", "full_attention", "linear_attention"),
    "sliding_window_pattern": ("layer_types", "full_attention", "sliding_attention"),
    "_sliding_window_pattern": ("layer_types", "full_attention", "sliding_attention"),
    "no_rope_layer_interval": ("no_rope_layers", 0, 1),
}
"""Fields that make every n-th layer special: the equivalent per-layer list, and its entries for
every n-th layer and for the others."""

MTP_FIELDS = frozenset({"num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers"})
"""Numbers of multi-token-prediction heads. They follow the decoder, which does not need them;
trained on its last layer's output, they are left out of a reduced model."""

SHARING_FIELDS = {
    "num_kv_shared_layers": "late layers use the keys and values of earlier ones",
    "hidden_size_per_layer_input": "each layer reads its own slice of a shared embedding",
    "cross_layer_attention": "layers use the keys and values of others",
    "share_layernorm": "layers share weights",
    "scale_attn_by_inverse_layer_idx": "attention is scaled by the layer's position",
    "is_encoder_decoder": "only decoders can be reduced",
    "quantization_config": "quantized weights cannot be reduced; start from the unquantized model",
}
"""Fields that make removal inexact unless they are zero or absent."""

KIND_FIELDS = ("layer_types", "layers_block_type", "hybrid_override_pattern", "mlp_layer_types")
"""The lists of config.json that name each layer's kind."""

MISREAD_IF_UNEVEN = frozenset({"qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"})
"""Values of model_type whose kinds some engines compute from full_attention_interval alone, or from
its default."""

MISREAD = (
    " (uneven: llama.cpp before September 2026 and Megatron-Bridge before July 2026 assign the "
    "wrong kind to some layers)"
)

MOST_LAYERS = 10_000
"""No model has more; a number above would be counted to for hours."""

HARMLESS_FIELDS = frozenset(
    "time_step_rank time_step_limit mlp_multipliers ssm_multipliers architectures".split()
)
"""Fields whose names or lengths only look as if they were about decoder layers."""

_ABOUT_LAYERS = re.compile(
    r"(^|_)(layers?|idxs?|indices|interval|period|offset|freq|frequency|pattern|step)(_|$)"
)


def layer_count(config: dict[str, Any], name: str = "config.json") -> int:
    """Return the number of decoder layers that a config.json, or what has that `name`, declares.

    Raises ModelError if it declares none, as in encoder-decoder configs and some multimodal ones,
    or a field about layers is mistyped or absurd.
    """
    numbers = dict.fromkeys((*COUNT_FIELDS, *THRESHOLD_FIELDS, *MTP_FIELDS), int | None)
    lists = dict.fromkeys((*PER_LAYER_FIELDS, *INDEX_FIELDS), list | str | None)
    refuse_mistyped(name, config, {**numbers, **lists})
    for field in {*numbers} & {*config} - {*THRESHOLD_FIELDS}:
        low, value = int(field in COUNT_FIELDS), config[field]
        if value is not None and not low <= value <= MOST_LAYERS:
            raise ModelError(f"{name}: {field} is {value}, expected {low} to {MOST_LAYERS:,}")
    for field in COUNT_FIELDS:
        if config.get(field) is not None:
            return int(config[field])
    inside = {field: value for field, value in config.items() if isinstance(value, dict)}
    nested = [field for field, value in inside.items() if {*COUNT_FIELDS} & value.keys()]
    if named := [field for field in nested if "vision" not in field and "audio" not in field]:
        refuse_sharing(config[named[0]])
        raise ModelError(
            f"config.json nests a language model under {named[0]!r}: of multimodal models, only "
            f"{', '.join(TEXT_MODELS)} can be reduced; save the language model on its own first"
        )
    raise ModelError(
        f"model_type {config.get('model_type')!r} declares no number of decoder layers "
        f"({' or '.join(COUNT_FIELDS[:2])}): only decoder language models can be reduced"
    )


def reduced_config(config: dict[str, Any], kept_layers: Sequence[int]) -> dict[str, Any]:
    """Return config.json for the kept layers alone (0-based, ascending); may raise a ModelError."""
    num_layers = layer_count(config)
    if len(kept_layers) == num_layers:
        return dict(config)
    refuse_sharing(config)
    _refuse_unknown(config, num_layers)
    full = with_cadences(without_mtp_heads(config), num_layers)
    sparse = _sparse_layers(full, kept_layers) | _expert_layers(full, kept_layers)
    reduced = {**full, **sparse}
    for field in full.keys() & set(COUNT_FIELDS):
        reduced[field] = len(kept_layers)
    for field in full.keys() & PER_LAYER_FIELDS:
        if full[field]:
            reduced[field] = _sliced(field, full[field], kept_layers, num_layers)
    for field in reduced.keys() & INDEX_FIELDS:
        if full.get(field) and field not in sparse:
            reduced[field] = [kept_layers.index(i) for i in full[field] if i in kept_layers]
    for field in full.keys() & THRESHOLD_FIELDS:
        if full[field] is not None:
            reduced[field] = sum(index < full[field] for index in kept_layers)
    return _without_cadences(reduced)


def without_mtp_heads(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json that declares no heads for multi-token prediction."""
    return {**config, **dict.fromkeys(config.keys() & MTP_FIELDS, 0)}


def reduced_generation_config(content: dict[str, Any]) -> dict[str, Any]:
    """Return a generation_config.json without settings that refer to the larger model's layers."""
    named = {"assistant_early_exit", "dola_layers"}
    return {key: value for key, value in content.items() if key not in named}


def _sliced(field: str, entries: Any, kept_layers: Sequence[int], num_layers: int) -> Any:
    if len(entries) != num_layers:
        raise ModelError(
            f"config.json's {field} has {len(entries)} entries for {num_layers} layers: "
            "they disagree, fix config.json first"
        )
    kept = [entries[index] for index in kept_layers]
    return "".join(kept) if isinstance(entries, str) else kept


def with_cadences(config: dict[str, Any], num_layers: int) -> dict[str, Any]:
    """Spell out, layer by layer, what a config states only as a cadence."""
    lists: dict[str, Any] = {}
    for field, (target, nth, others) in CADENCES.items():
        every = config.get(field)
        if every and not config.get(target):
            if type(every) is not int:
                raise ModelError(f"config.json's {field}={every} is not a whole number")
            lists[target] = [others if (i + 1) % every else nth for i in range(num_layers)]
    return {**config, **lists}


def _without_cadences(reduced: dict[str, Any]) -> dict[str, Any]:
    """Set each cadence to the one the kept layers follow; drop it if they follow none."""
    result = dict(reduced)
    for field in reduced.keys() & CADENCES.keys():
        target, nth, others = CADENCES[field]
        layers = reduced.get(target)
        if layers and reduced[field]:
            del result[field]
            every = layers.index(nth) + 1 if nth in layers else len(layers) + 1
            if layers == [others if (i + 1) % every else nth for i in range(len(layers))]:
                result[field] = every
    return result


def _sparse_layers(config: dict[str, Any], kept_layers: Sequence[int]) -> dict[str, Any]:
    """List the dense layers one by one if a cadence (`decoder_sparse_step`) chose them."""
    step = config.get("decoder_sparse_step") or 1
    if step == 1:
        return {}
    dense = config.get("mlp_only_layers") or []
    new = [i for i, old in enumerate(kept_layers) if old in dense or (old + 1) % step]
    return {"decoder_sparse_step": 1, "mlp_only_layers": new}


def _expert_layers(config: dict[str, Any], kept_layers: Sequence[int]) -> dict[str, Any]:
    """List the layers with experts one by one if a cadence (`interleave_moe_layer_step`) did."""
    step, given = config.get("interleave_moe_layer_step"), config.get("moe_layers")
    if not step:
        return {}
    experts = given if given is not None else range(step - 1, layer_count(config), step)
    new = [i for i, old in enumerate(kept_layers) if old in experts]
    every, depth = (new[0] if new else len(kept_layers)) + 1, len(kept_layers)
    is_cadence = new == list(range(every - 1, depth, every))
    return {"interleave_moe_layer_step": every if is_cadence else 1, "moe_layers": new}


def refuse_sharing(config: dict[str, Any]) -> None:
    """Raise a ModelError if layers depend on each other or on their position."""
    for field, reason in SHARING_FIELDS.items():
        if config.get(field):
            value = "" if isinstance(config[field], dict) else f"={config[field]}"
            raise ModelError(f"config.json's {field}{value}: {reason} (removal is not exact)")


def _refuse_unknown(config: dict[str, Any], num_layers: int) -> None:
    known = {*PER_LAYER_FIELDS, *INDEX_FIELDS, *THRESHOLD_FIELDS, *CADENCES, *MTP_FIELDS}
    known |= {*COUNT_FIELDS, *HARMLESS_FIELDS, "decoder_sparse_step", "interleave_moe_layer_step"}
    for field, value in config.items():
        if field in known or re.match(r"mtp_|.+_token_ids?$", field):
            continue
        about_layers = bool(_ABOUT_LAYERS.search(field))
        is_list = isinstance(value, list) and value and (about_layers or len(value) == num_layers)
        # 0 and 1 are neutral: nothing is counted, or every layer is.
        is_count = about_layers and type(value) is int and value not in (0, 1)
        if is_list or is_count:
            shown = f"={value}" if is_count else ""
            raise ModelError(
                f"config.json's {field}{shown} may describe layers, but its meaning is unknown: "
                "removing layers would be a guess"
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
