"""The smaller model's config and tensor names, from the larger one's: exact, or refused.

Every field of a config that speaks of layers must follow the kept ones: the count, lists with one
entry a layer, lists of layer indices, and thresholds. A stale one raises late or, worse, changes
the model without a word. What a field means is written down here; a list that could be per-layer
but is not known is refused by name.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from lamina.errors import ModelError

COUNT_FIELDS = ("num_hidden_layers", "n_layer")
"""Names under which architectures keep their number of decoder layers."""

PER_LAYER_FIELDS = frozenset({"layer_types", "mlp_layer_types", "no_rope_layers"})
"""Lists with one entry a layer: sliced by the kept indices."""

INDEX_FIELDS = frozenset({"mlp_only_layers"})
"""Lists of 0-based layer indices: dropped ones leave, the others are renumbered."""

THRESHOLD_FIELDS = frozenset({"max_window_layers", "first_k_dense_replace"})
"""Numbers that split the layers into those below and those from there on: counted again."""

CADENCE_FIELDS = {"decoder_sparse_step": 1, "full_attention_interval": 1}
"""Every so-manieth layer is special, by position: refused unless it is the value given here."""

SHARING_FIELDS = ("num_kv_shared_layers", "num_nextn_predict_layers")
"""Layers that use what other layers computed: refused unless zero."""

_LAYER_KEY = re.compile(r"^(?P<prefix>(?:\w+\.)*?(?:layers|h))\.(?P<index>\d+)\.(?P<rest>.+)$")


def layer_count(config: dict[str, Any]) -> int:
    """Return the number of decoder layers that a config.json declares.

    Raises:
        ModelError: It declares none; encoder-decoder and multimodal configs do not.
    """
    for field in COUNT_FIELDS:
        if isinstance(config.get(field), int):
            return int(config[field])
    raise ModelError(
        f"model_type {config.get('model_type')!r} declares no number of decoder layers "
        f"({' or '.join(COUNT_FIELDS)}): only decoder language models can be reduced"
    )


def reduced_config(config: dict[str, Any], kept_layers: Sequence[int]) -> dict[str, Any]:
    """Return a config.json for the model that has only the kept layers.

    Args:
        config: Content of the larger model's config.json; not changed.
        kept_layers: 0-based indices, ascending.

    Raises:
        ModelError: A field says something about layers that cannot be carried over exactly.
    """
    num_layers = layer_count(config)
    if len(kept_layers) == num_layers:
        return dict(config)
    _refuse_unknown(config, num_layers)
    reduced = dict(config)
    for field in config.keys() & set(COUNT_FIELDS):
        reduced[field] = len(kept_layers)
    for field in config.keys() & PER_LAYER_FIELDS:
        if config[field] is not None:
            reduced[field] = [config[field][index] for index in kept_layers]
    for field in config.keys() & INDEX_FIELDS:
        if config[field]:
            reduced[field] = [kept_layers.index(i) for i in config[field] if i in kept_layers]
    for field in config.keys() & THRESHOLD_FIELDS:
        if config[field] is not None:
            reduced[field] = sum(index < config[field] for index in kept_layers)
    return reduced


def kept_tensors(names: Iterable[str], kept_layers: Sequence[int]) -> dict[str, str]:
    """Map each tensor name that stays to its name in the smaller model.

    Args:
        names: All tensor names of the larger model's checkpoint.
        kept_layers: 0-based indices, ascending; the i-th of them becomes layer i.

    Raises:
        ModelError: The checkpoint has no layer of one of these indices, or several layer stacks.
    """
    position = {index: new for new, index in enumerate(kept_layers)}
    mapping: dict[str, str] = {}
    prefixes: set[str] = set()
    found: set[int] = set()
    for name in names:
        match = _LAYER_KEY.match(name)
        if match is None:
            mapping[name] = name
            continue
        prefixes.add(match["prefix"])
        index = int(match["index"])
        if index in position:
            found.add(index)
            mapping[name] = f"{match['prefix']}.{position[index]}.{match['rest']}"
    if len(prefixes) > 1:
        raise ModelError(
            f"the checkpoint has several stacks of layers ({', '.join(sorted(prefixes))}): "
            "only decoder language models with one can be reduced"
        )
    if missing := sorted(position.keys() - found):
        raise ModelError(
            f"the checkpoint has no tensors for layer {missing[0]}, which its config.json promises"
        )
    return mapping


def _refuse_unknown(config: dict[str, Any], num_layers: int) -> None:
    known = PER_LAYER_FIELDS | INDEX_FIELDS
    for field, value in config.items():
        if isinstance(value, dict) and any(count in value for count in COUNT_FIELDS):
            raise ModelError(f"config.json nests a model under {field!r}: it cannot be reduced yet")
        if isinstance(value, list) and len(value) == num_layers and field not in known:
            raise ModelError(
                f"config.json's {field!r} may hold one entry a layer, and its meaning is not "
                "known: removing layers would be a guess"
            )
    for field in SHARING_FIELDS:
        if config.get(field):
            raise ModelError(
                f"config.json's {field}={config[field]}: layers depend on each other, "
                "removing some would not be exact"
            )
    for field, neutral in CADENCE_FIELDS.items():
        if config.get(field, neutral) != neutral and not config.get("layer_types"):
            raise ModelError(
                f"config.json's {field}={config[field]} counts layers by position: "
                "removing some would move the pattern"
            )
