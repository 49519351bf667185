"""One layer of a model as a model of its own, so that a whole one need not be in memory."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lamina.depth.reduction import Reduction, explicit
from lamina.depth.surgery import reduced_config
from lamina.depth.tensor_names import with_layer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load_single_layer(
    model: Reduction,
    layer: int | None,
    slices: Mapping[str, Any],
    dtype: "torch.dtype",
    device: str = "cpu",
) -> "PreTrainedModel":
    """Let transformers load one layer, with whatever it does to names and weights.

    Args:
        model: What the layer is of.
        layer: Its 0-based index; None for what is in no layer: embeddings, norm and head, beside
            a layer with random weights.
        slices: The tensors, by their names in the model's checkpoint.
        dtype: Of real numbers.
        device: Where to.
    """
    content = reduced_config(explicit(model.content, model.config), (layer or 0,))
    if layer is not None:
        # Nearly no embeddings: they are not this layer's, and would be filled with random numbers.
        content["vocab_size"] = 1
        content.update(dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")))
    placed = {} if device == "cpu" else {"device_map": {"": device}}
    return type(model.blueprint).from_pretrained(
        None,
        config=type(model.config).from_dict(content),
        state_dict={with_layer(name, 0): piece for name, piece in slices.items()},
        dtype=dtype,
        **placed,
    )
