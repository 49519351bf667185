"""Weights in four bits, as QLoRA has them (Dettmers et al. 2023, arXiv:2305.14314).

The weights of the decoder's linear layers are NF4 in blocks of 64, with one scale each, which is
quantized itself; the embedding, the norms and the output head keep their type.
"""

import importlib.util
from typing import TYPE_CHECKING

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

SCALE_BITS = 8 / 64 + 32 / (64 * 256)
"""Beside the four of a weight: its share of its block's scale, and of that of 256 such scales."""

QUANTIZED_BYTES = (4 + SCALE_BITS) / 8
"""Of one weight with its scales."""


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


def linear_weights(model: "PreTrainedModel") -> int:
    """Return how many weights of a model are, or would be, four bits wide.

    Args:
        model: Without an adapter or with one, of which nothing counts.
    """
    from torch.nn import Linear

    head = model.get_output_embeddings()
    return sum(
        module.in_features * module.out_features
        for name, module in model.named_modules()
        if isinstance(module, Linear) and module is not head and "lora_" not in name
    )


def expected_bytes(model: "PreTrainedModel", dtype: "torch.dtype") -> int:
    """Return what the weights of a model will take, with its linear layers in four bits.

    Args:
        model: Without weights.
        dtype: Of the other weights.
    """
    quantized = linear_weights(model)
    others = model.num_parameters() - quantized
    return round(quantized * QUANTIZED_BYTES) + others * dtype.itemsize


def scale_bytes(model: "PreTrainedModel") -> int:
    """Return what the scales of a loaded model's quantized weights take, beside the weights.

    By their number: a processor that computes in bfloat16 keeps them in a form of its own.
    """
    packed = (p.numel() for p in model.parameters() if getattr(p, "quant_state", None) is not None)
    return round(2 * sum(packed) * SCALE_BITS / 8)
