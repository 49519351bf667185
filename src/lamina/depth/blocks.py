"""The proof that a smaller model's blocks are the larger one's: same modules, same settings.

Both models are built without weights, from their configs. What a block computes is decided by its
modules, the shapes of their weights and their plain attributes (sliding_window, use_rope, scaling,
...); only its index may differ. So a config field that reached a block by its position, and that
the surgery did not know, is found whatever the architecture.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lamina.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

INDEX_ATTRIBUTES = frozenset({"layer_idx", "layer_id", "layer_index", "layer_number", "block_idx"})
"""Attributes that hold a block's own position."""

_PLAIN = (bool, int, float, str, type(None), tuple, list)


def blueprint(config: "PretrainedConfig") -> "PreTrainedModel":
    """Build a model without weights: its modules on the meta device."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def decoder_stack(model: "PreTrainedModel", depth: int) -> tuple[str, "torch.nn.ModuleList"]:
    """Return the module list that holds a model's decoder layers, and its name.

    Raises:
        ModelError: There is none with this many modules.
    """
    for name, module in model.named_modules():
        if type(module).__name__ == "ModuleList" and len(module) == depth:
            return name, module
    raise ModelError(
        f"{type(model).__name__} has no list of {depth} decoder layers: it cannot be reduced"
    )


def adapter_form_is_exact(model: "PreTrainedModel") -> bool:
    """Say whether an adapter with PEFT's layer replication rebuilds exactly this reduced model.

    PEFT 0.21 walks down `.model` and takes `layers`, `encoder.layer` or `h` there, and it leaves
    `layer_types` as they were: with mixed types the wrong mask would reach the layers behind a gap.
    """
    inner: Any = model
    while hasattr(inner, "model"):
        inner = inner.model
    stack = decoder_stack(model, model.config.num_hidden_layers)[1]
    found = [getattr(inner, "layers", None), getattr(inner, "h", None)]
    found.append(getattr(getattr(inner, "encoder", None), "layer", None))
    types = set(getattr(model.config, "layer_types", None) or ())
    return len(types) <= 1 and any(layers is stack for layers in found)


def refuse_changed_blocks(
    larger: "PreTrainedModel", smaller: "PreTrainedModel", kept_layers: Sequence[int]
) -> None:
    """Hold each block of the smaller model against the one that it was.

    Args:
        larger: The whole model, without weights.
        smaller: The model of the reduced config, without weights.
        kept_layers: 0-based indices in the larger model, ascending.

    Raises:
        ModelError: A block would compute something else at its new position.
    """
    depth = larger.config.num_hidden_layers
    blocks = decoder_stack(larger, depth)[1]
    kept = decoder_stack(smaller, len(kept_layers))[1]
    for new, old in enumerate(kept_layers):
        if difference := next(_differences(blocks[old], kept[new]), None):
            raise ModelError(
                f"layer {old} of this {larger.config.model_type} would not compute the same as "
                f"layer {new} ({difference}): this set of layers cannot be removed exactly"
            )


def _differences(old: Any, new: Any) -> Iterator[str]:
    theirs, ours = dict(old.named_modules()), dict(new.named_modules())
    for name in [*theirs, *(name for name in ours if name not in theirs)]:
        if type(theirs.get(name)) is not type(ours.get(name)):
            was, now = (type(m.get(name)).__name__ for m in (theirs, ours))
            yield f"{name}: {was} would become {now}"
            return
        yield from _differing_settings(name, theirs[name], ours[name])


def _differing_settings(name: str, old: Any, new: Any) -> Iterator[str]:
    was, now = _settings(old), _settings(new)
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) != now.get(key):
            yield f"{name}.{key}: {was.get(key)} would become {now.get(key)}".lstrip(".")


def _settings(module: Any) -> dict[str, Any]:
    """A module's plain attributes, and the shapes of its own weights and buffers."""
    plain = {
        key: value
        for key, value in vars(module).items()
        if key not in INDEX_ATTRIBUTES and not key.startswith("_") and isinstance(value, _PLAIN)
    }
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return {**plain, **{key: tuple(tensor.shape) for key, tensor in own}}
