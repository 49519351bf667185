"""The methods of repair, and the weights that each can change: those that add to hidden states.

A layer adds the outputs of its attention and its MLP to the hidden states; the norm before each
takes them at any scale. If a norm also follows each, as in Gemma, its output is what is added.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lamina.depth.layer_sets import format_layers, half_open_ranges
from lamina.depth.reduction import decoder_stack
from lamina.errors import ModelError
from lamina.scan.streams import PARTS

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

NONE, MAGNITUDE, CLOSED_FORM = "none", "magnitude", "closed_form"
"""Values of repair."""

BEFORE = {"input_layernorm", "post_attention_layernorm"}
"""Norms of a layer with one before each sublayer; the first may serve both."""

AROUND = {*BEFORE, "pre_feedforward_layernorm", "post_feedforward_layernorm"}
"""Norms of a layer with one before and one after each sublayer."""

AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")

OUTPUTS = ("self_attn.o_proj", "linear_attn.out_proj")
"""Projections that end an attention."""

DOWN = tuple(f"{part}.down_proj" for part in PARTS["mlp"])
"""Projections that end an MLP."""


def cuts_of(kept_layers: Sequence[int], num_layers: int) -> list[range]:
    """Return the runs of removed layers (0-based, half-open), in order."""
    removed = sorted({*range(num_layers)} - {*kept_layers})
    return [range(start, stop) for start, stop in half_open_ranges(removed)]


def refuse_unrepairable(
    method: str, model: "PreTrainedModel", kept_layers: Sequence[int], num_layers: int
) -> None:
    """Raise a ModelError that names the first layer that a repair must change and cannot.

    `model` is the reduced model, with or without weights.
    """
    cuts, stack = cuts_of(kept_layers, num_layers), decoder_stack(model, len(kept_layers))[1]
    for cut in cuts if method == CLOSED_FORM else ():
        if cut.start == 0:
            raise ModelError(
                f"repair={method}: no layer precedes the cut {format_layers(cut)}: keep layer 0 "
                "(depth.protect=[0]), or use repair=magnitude"
            )
        layer = cut.start - 1
        block = stack[kept_layers.index(layer)]
        if down_projection(block) is None:
            what = f"before the cut {format_layers(cut)}, has no down_proj"
            raise _unrepairable(method, layer, block, what)
    if method == MAGNITUDE and kept_layers[-1] < cuts[0].start:
        raise ModelError(
            f"repair={method}: no layer follows the cut {format_layers(cuts[0])}, so nothing would "
            "change: use repair=closed_form or repair=none"
        )
    for position, layer in enumerate(kept_layers if method == MAGNITUDE else ()):
        if layer >= cuts[0].stop and not writers(stack[position]):
            what = f"after the cut {format_layers(cuts[0])}, has no o_proj and down_proj"
            raise _unrepairable(method, layer, stack[position], what)


def _unrepairable(method: str, layer: int, block: Any, what: str) -> ModelError:
    kind = type(block).__name__
    return ModelError(
        f"repair={method}: layer {layer} ({kind}), {what} whose output is added to the hidden "
        "states unchanged: use repair=none"
    )


def down_projection(block: Any) -> str | None:
    """Return the name in a layer of the projection whose output is added to the hidden states."""
    is_scaled = getattr(block, "residual_multiplier", 1) != 1
    if _norms(block) not in (BEFORE, {"input_layernorm"}) or is_scaled:
        return None
    return _linear(block, DOWN)


def writers(block: Any) -> "list[nn.Module]":
    """Return the modules whose weights scale what a layer adds; none if they are not known."""
    norms = _norms(block)
    if norms == AROUND:
        return [getattr(block, name) for name in AFTER]
    if norms not in (BEFORE, {"input_layernorm"}):
        return []
    attention, mlp = _linear(block, OUTPUTS), _linear(block, DOWN)
    return [block.get_submodule(name) for name in (attention, mlp)] if attention and mlp else []


def _norms(block: Any) -> set[str]:
    return {name for name, _ in block.named_children() if "norm" in name or name.startswith("ln")}


def _linear(block: Any, names: Sequence[str]) -> str | None:
    """Return the first of the names that is a linear layer of the block."""
    from torch.nn import Linear

    modules = dict(block.named_modules())
    return next((name for name in names if type(modules.get(name)) is Linear), None)
