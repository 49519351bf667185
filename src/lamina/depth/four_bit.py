"""Weights in four bits, as QLoRA has them (Dettmers et al. 2023, arXiv:2305.14314).

The weights of the decoder's linear layers are NF4 in blocks of 64, with one scale each, which is
quantized itself; the embedding, the norms and the output head keep their type.
"""

import importlib.util
from typing import TYPE_CHECKING, Any

from lamina.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel

SETTINGS = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
}
"""Fields of transformers' BitsAndBytesConfig; bnb_4bit_compute_dtype is the weights' own type."""

BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Of one weight: its own, its block's scale, and the scale of 256 such scales."""


def quantization(dtype: "torch.dtype") -> "BitsAndBytesConfig":
    """Return what `from_pretrained` takes to read weights into four bits.

    Args:
        dtype: Of the other weights, and of what is computed.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("weights in 4 bits need bitsandbytes: pip install bitsandbytes")
    return BitsAndBytesConfig(bnb_4bit_compute_dtype=dtype, **SETTINGS)


def expected_bytes(model: "PreTrainedModel", dtype: "torch.dtype") -> int:
    """Return what the weights of a model will take, with its linear layers in four bits.

    Args:
        model: Without weights.
        dtype: Of the other weights.
    """
    from torch.nn import Linear

    head = model.get_output_embeddings()
    linear = [each for each in model.modules() if isinstance(each, Linear) and each is not head]
    quantized = sum(each.weight.numel() for each in linear)
    return round(quantized * BITS / 8) + (model.num_parameters() - quantized) * dtype.itemsize


def scale_bytes(model: "PreTrainedModel") -> int:
    """Return what the scales of a loaded model's quantized weights take, beside the weights."""
    states = (getattr(parameter, "quant_state", None) for parameter in model.parameters())
    return sum(map(_state_bytes, states))


def _state_bytes(state: Any) -> int:
    """Bytes of a quantization's scales, of its table and, where they are quantized, of theirs."""
    if state is None:
        return 0
    own = (value for value in (state.absmax, state.code, state.offset) if value is not None)
    return sum(value.numel() * value.itemsize for value in own) + _state_bytes(state.state2)
