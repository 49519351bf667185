"""Weights in four bits, as in QLoRA (Dettmers et al. 2023, arXiv:2305.14314).

The decoder's linear layers store NF4 weights in blocks of 64 with one scale per block, and the
scales are quantized too; the embedding, the norms and the output head keep their type.
"""

from typing import TYPE_CHECKING

from lamina.errors import ConfigError
from lamina.runtime.device import installed

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel

SETTINGS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
"""Fields of transformers' BitsAndBytesConfig; bnb_4bit_compute_dtype is the weights' own type."""

SCALE_BITS = 8 / 64 + 32 / (64 * 256)
"""Scale bits per weight: an 8-bit scale per 64 weights, a float32 scale per 256 such scales."""

QUANTIZED_BYTES = (4 + SCALE_BITS) / 8
"""Bytes per weight, scales included."""


def quantization(dtype: "torch.dtype") -> "BitsAndBytesConfig":
    """Return `from_pretrained`'s setting for four bits, computing in `dtype`; or ConfigError."""
    from transformers import BitsAndBytesConfig

    if not installed("bitsandbytes"):
        raise ConfigError("weights in 4 bits need bitsandbytes: pip install bitsandbytes")
    return BitsAndBytesConfig(bnb_4bit_compute_dtype=dtype, **SETTINGS)


def linear_weights(model: "PreTrainedModel") -> int:
    """Return how many of a model's weights are, or would be, in four bits; adapters are ignored."""
    from torch.nn import Linear

    head = model.get_output_embeddings()
    return sum(
        module.in_features * module.out_features
        for name, module in model.named_modules()
        if isinstance(module, Linear) and module is not head and "lora_" not in name
    )


def expected_bytes(model: "PreTrainedModel", dtype: "torch.dtype") -> int:
    """Return the bytes of a model's weights with linear layers in four bits, others in `dtype`."""
    quantized = linear_weights(model)
    others = model.num_parameters() - quantized
    return round(quantized * QUANTIZED_BYTES) + others * dtype.itemsize


def scale_bytes(model: "PreTrainedModel") -> int:
    """Return the bytes of the scales that a loaded model stores beside its quantized weights.

    Computed from their number: CPUs with bfloat16 arithmetic store them in a layout of their own.
    """
    packed = (p.numel() for p in model.parameters() if getattr(p, "quant_state", None) is not None)
    return round(2 * sum(packed) * SCALE_BITS / 8)
