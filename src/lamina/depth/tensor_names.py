"""The names of a checkpoint's tensors: which layer they belong to, and what they become."""

import re
from collections.abc import Collection, Sequence
from typing import Any

from lamina.depth.surgery import MTP_FIELDS, layer_count
from lamina.errors import ModelError

_LAYER_KEY = re.compile(r"^(?P<prefix>(?:\w+\.)*?(?:layers|h))\.(?P<index>\d+)\.(?P<rest>.+)$")
_MTP_KEY = re.compile(r"^(?:\w+\.)*mtp(?:_\w+)?\.")


def kept_tensors(
    names: Collection[str], kept_layers: Sequence[int], config: dict[str, Any]
) -> dict[str, str]:
    """Map each tensor name that stays to its name in the smaller model.

    Args:
        names: All tensor names of the larger model's checkpoint.
        kept_layers: 0-based indices, ascending; the i-th of them becomes layer i.
        config: Content of the larger model's config.json.

    Raises:
        ModelError: The checkpoint's layers are not those that the config promises, or it has
            several stacks of them.
    """
    num_layers = layer_count(config)
    position = {index: new for new, index in enumerate(kept_layers)}
    mapping: dict[str, str] = {}
    prefixes: set[str] = set()
    found: set[int] = set()
    for name in names:
        match = _LAYER_KEY.match(name)
        if _MTP_KEY.match(name):
            continue
        if match is None:
            mapping[name] = name
            continue
        prefixes.add(match["prefix"])
        index = int(match["index"])
        found.add(index)
        if index in position:
            mapping[name] = f"{match['prefix']}.{position[index]}.{match['rest']}"
    if len(prefixes) > 1:
        raise ModelError(
            f"the checkpoint has several stacks of layers ({', '.join(sorted(prefixes))}): "
            "only decoder language models with one can be reduced"
        )
    _refuse_other_depth(found, num_layers, sum(config.get(field) or 0 for field in MTP_FIELDS))
    return mapping if len(kept_layers) < num_layers else {name: name for name in names}


def layer_of(name: str) -> int | None:
    """Return the index of the layer that a tensor belongs to; None if it belongs to none."""
    match = None if _MTP_KEY.match(name) else _LAYER_KEY.match(name)
    return int(match["index"]) if match else None


def with_layer(name: str, index: int) -> str:
    """Return a tensor's name with another layer index; unchanged if it belongs to no layer."""
    match = None if _MTP_KEY.match(name) else _LAYER_KEY.match(name)
    return f"{match['prefix']}.{index}.{match['rest']}" if match else name


def _refuse_other_depth(found: set[int], num_layers: int, num_heads: int) -> None:
    """Raise if the layers in the files are not those that config.json promises."""
    if missing := sorted(set(range(num_layers)) - found):
        raise ModelError(
            f"the checkpoint has no tensors for layer {missing[0]}, but its config.json promises "
            f"{num_layers} layers: it would be filled with random weights; mend the config first"
        )
    if beyond := sorted(index for index in found if index >= num_layers + num_heads):
        raise ModelError(
            f"the checkpoint has tensors for layer {beyond[0]}, but its config.json promises only "
            f"{num_layers} layers: mend the config first"
        )
