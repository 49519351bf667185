"""Tensor names of a checkpoint: which layer they belong to, and their new names."""

import re
from collections.abc import Collection, Sequence
from typing import Any

from lamina.depth.surgery import MTP_FIELDS, layer_count
from lamina.errors import ModelError
from lamina.weights.source import Source

_LAYER_KEY = re.compile(
    r"^(?P<prefix>(?:\w+\.)*?(?:layers|h|blocks))\.(?P<index>\d+)\.(?P<rest>.+)$"
)
_MTP_KEY = re.compile(r"^(?:\w+\.)*mtp(?:_\w+)?\.")


def kept_tensors(
    names: Collection[str], kept_layers: Sequence[int], config: dict[str, Any]
) -> dict[str, str]:
    """Map the name of each tensor that stays to its name in the smaller model.

    The i-th of the kept layers (0-based, ascending) becomes layer i. Raises ModelError if the
    checkpoint's layers differ from what config.json declares, or it has several stacks of layers.
    """
    num_layers = layer_count(config)
    position = {index: new for new, index in enumerate(kept_layers)}
    mapping: dict[str, str] = {}
    prefixes: set[str] = set()
    found: set[int] = set()
    for name in names:
        if _MTP_KEY.match(name):
            continue
        match = _layer_key(name)
        if match is None:
            mapping[name] = name
            continue
        prefixes.add(match["prefix"])
        index = int(match["index"])
        found.add(index)
        if index in position:
            mapping[name] = with_layer(name, position[index])
    if len(prefixes) > 1:
        raise ModelError(
            f"the checkpoint has several stacks of layers ({', '.join(sorted(prefixes))}): "
            "only decoder language models with a single stack can be reduced"
        )
    _refuse_other_depth(found, num_layers, sum(config.get(field) or 0 for field in MTP_FIELDS))
    return mapping if len(kept_layers) < num_layers else {name: name for name in names}


def is_mtp_tensor(name: str, num_layers: int) -> bool:
    """Whether a tensor belongs to a head for multi-token prediction, behind the last layer."""
    layer = layer_of(name)
    return bool(_MTP_KEY.match(name)) or (layer is not None and layer >= num_layers)


def has_mtp_heads(source: Source) -> bool:
    """Whether a model has heads for multi-token prediction; not every config.json says so."""
    configs = (source.whole_config, source.whole_config.get("text_config") or {})
    if any(config.get(field) for config in configs for field in MTP_FIELDS):
        return True
    return any(map(_MTP_KEY.match, source.stored_names))


def layer_of(name: str) -> int | None:
    """Return the 0-based index of a tensor's layer; None if it belongs to none."""
    match = _layer_key(name)
    return int(match["index"]) if match else None


def with_layer(name: str, index: int) -> str:
    """Replace the layer index in a tensor's name; unchanged if it belongs to no layer."""
    match = _layer_key(name)
    return f"{match['prefix']}.{index}.{match['rest']}" if match else name


def _layer_key(name: str) -> re.Match[str] | None:
    return None if _MTP_KEY.match(name) else _LAYER_KEY.match(name)


def _refuse_other_depth(found: set[int], num_layers: int, num_heads: int) -> None:
    """Raise if the layers in the files differ from what config.json declares."""
    if missing := sorted(set(range(num_layers)) - found):
        raise ModelError(
            f"the checkpoint has no tensors for layer {missing[0]}, but its config.json declares "
            f"{num_layers} layers: it would get random weights; fix config.json first"
        )
    if beyond := sorted(index for index in found if index >= num_layers + num_heads):
        raise ModelError(
            f"the checkpoint has tensors for layer {beyond[0]}, but its config.json declares only "
            f"{num_layers} layers: fix config.json first"
        )
