"""A training's floating-point operations, and the most an accelerator can do per second.

A matrix of n weights costs each token that passes through it

    2n  forward                       a multiplication and an addition per weight
    2n  gradient of its weights       if they are trained
    2n  gradient of its input         if anything trained comes before it

so full training costs 6n per token, and adapters with m weights cost 4n + 6m. The backward pass
stops at the lowest trained weight; in that weight's layer, attention counts in full. In a mixture
of experts, a token passes through the active experts only.

Attention costs 4 x heads x head_dim operations forward per pair of a token and one it can attend
to, and twice that backward. Pairs follow the mask: causal, within one document and within a sliding
window. Of other layers (linear, chunked attention), only the matrices count.

The output head counts for tokens whose prediction is trained. Embedding lookups, norms, softmax,
rotary embeddings and the optimizer do not count, nor does recomputation (gradient
checkpointing, flash attention's backward pass): this is model FLOPs utilization (Chowdhery et al.
2022, arXiv:2204.02311, appendix B), not hardware FLOPs utilization.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

import torch

READS_WITHIN = frozenset(
    "o_proj out_proj c_proj dense down_proj dense_4h_to_h fc2 fc_out wo w2".split()
)
"""Matrices that read the output of others in their sublayer; the rest read the layer's input."""

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
ACTIVE = ("num_experts_per_tok", "moe_topk")
"""Fields of config.json: a layer's experts, and those active for a token; some list it by layer."""


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Floating-point operations of training, forward and backward."""

    per_token: int
    """Per token, in all layers' matrices."""
    per_target: int
    """Per token whose prediction is trained, in the output head."""
    per_pair: Mapping[int | None, int]
    """Per pair of tokens, by sliding window in tokens; None stands for no window."""

    def of(self, tokens: float, targets: float, pairs: Mapping[int | None, float]) -> float:
        """Return the operations of some steps.

        `tokens` are without padding, the predictions of `targets` are trained, and `pairs` sums, by
        window, how many tokens each one attends to, itself included.
        """
        attention = sum(self.per_pair[window] * pairs[window] for window in self.per_pair)
        return self.per_token * tokens + self.per_target * targets + attention


@dataclass(frozen=True)
class _Matrix:
    layer: int | None
    """0-based; None outside the decoder layers."""
    sublayer: str
    size: int
    """Multiplications per token."""
    trained: bool
    within: bool
    """Whether it is one of READS_WITHIN."""
    second: bool
    """Whether it is an adapter's second matrix, which reads the first one's output."""

    def flops(self, before: bool) -> int:
        """Return its operations per token; `before` says whether anything before it is trained."""
        return self.size * (2 + 2 * self.trained + 2 * before)


def training_flops(model: torch.nn.Module) -> Flops:
    """Count the operations of training a transformers model, with or without PEFT's adapters."""
    per_token = per_target = 0
    per_pair: Counter[int | None] = Counter()
    embeddings = (module.parameters() for module in model.modules() if _is_embedding(module))
    before = any(weight.requires_grad for weight in chain.from_iterable(embeddings))
    for layer, in_layer in groupby(_matrices(model), key=lambda matrix: matrix.layer):
        core = before
        for _, grouped in groupby(in_layer, key=lambda matrix: matrix.sublayer):
            group, outside = sorted(grouped, key=lambda matrix: matrix.within), before
            for matrix in group:
                work = matrix.flops(before=outside or matrix.second or (matrix.within and before))
                per_token += work if layer is not None else 0
                per_target += work if layer is None else 0
                before = before or matrix.trained
            if "att" in group[0].sublayer:
                core = outside or any(m.trained for m in group if not m.within)
        if layer is not None:
            per_pair += _attention(model.config, layer, backward=core)
    return Flops(per_token=per_token, per_target=per_target, per_pair=dict(per_pair))


def _attention(config: Any, layer: int, *, backward: bool) -> Counter[int | None]:
    """Return one layer's operations per pair of tokens, by the layer's window."""
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    kinds = {
        "full_attention": None,
        "hybrid": None,  # Falcon-H1: attention beside a state space
        "sliding_attention": window,
        "chunked_attention": getattr(text, "attention_chunk_size", None),
    }
    types = getattr(text, "layer_types", None)
    if types and types[layer] not in kinds:
        return Counter()
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    work = 4 * heads * head_dim * (3 if backward else 1)
    return Counter({kinds[types[layer]] if types else window: work})


def _matrices(model: torch.nn.Module) -> Iterator[_Matrix]:
    """Yield every matrix that multiplies tokens, in the order of the forward pass."""
    config = model.config.get_text_config()
    for name, module in model.named_modules():
        for own, weight in module.named_parameters(recurse=False):
            size = _size(module, own, weight)
            if size == 0 or ".original_module" in name:  # PEFT keeps it beside the copy it trains
                continue
            found = re.search(r"\.(\d+)\.([^.]+)", f"{name}.{own}")
            layer = int(found[1]) if found else None
            if layer is not None and (weight.dim() == 3 or ".experts." in name):
                experts = _experts(config, EXPERTS, layer) or 1
                size = size * (_experts(config, ACTIVE, layer) or experts) // experts
            yield _Matrix(
                layer=layer,
                sublayer=found[2] if found else name,
                size=size,
                trained=weight.requires_grad,
                within=not READS_WITHIN.isdisjoint([*name.split("."), own]),
                second=".lora_B" in name,
            )


def _size(module: torch.nn.Module, own: str, weight: torch.nn.Parameter) -> int:
    """Return how many weights of a parameter multiply each token."""
    if _is_embedding(module) or isinstance(module, torch.nn.Conv1d) or "bias" in own:
        return 0
    if isinstance(module, torch.nn.Linear):
        return int(module.in_features * module.out_features)  # four-bit weights are packed
    return weight.numel() if weight.dim() in (2, 3) else 0


def _experts(config: Any, names: Sequence[str], layer: int) -> int | None:
    """Return the first of the fields that the config has, for a layer."""
    given = next((value for name in names if (value := getattr(config, name, None))), None)
    return given[layer] if isinstance(given, list) else given


def _is_embedding(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Embedding)


PEAK_TYPES = ("bfloat16", "float16", "tf32", "float32")
"""Columns of `PEAKS`; tf32 is for float32 products in TensorFloat-32, if torch is set to them."""

PEAKS: dict[str, tuple[float | None, ...]] = {
    r"B200": (2250, 2250, 1125, 75),
    r"H200|H100 80GB HBM3|H100 SXM5.*|GH200 .*": (989.4, 989.4, 494.7, 66.9),
    r"H100 NVL|H200 NVL": (835.5, 835.5, 417.5, 60),
    r"H100 PCIe": (756, 756, 378, 51),
    r"A100-(SXM4|PCIE)-\d+GB|A100 80GB PCIe": (312, 312, 156, 19.5),
    r"L40S": (362, 362, 183, 91.6),
    r"A10": (125, 125, 62.5, 31.2),
    r"L4": (121, 121, 60, 30.3),
    r"GeForce RTX 4090": (165.2, 165.2, 82.6, 82.6),
    r"GeForce RTX 3090": (71, 71, 35.6, 35.6),
    r"V100-SXM2-\d+GB": (None, 125, None, 15.7),
    r"V100-PCIE-\d+GB": (None, 112, None, 14),
}
"""Dense TFLOP/s by a pattern of `torch.cuda.get_device_name` without the maker; None for a type
without native support. The pattern must match the whole name: similar names (a laptop's card, a MIG
slice, the RTX 4090 D) have other peaks. From NVIDIA's data sheets and, for GeForce cards, its
architecture papers (bfloat16 products accumulated in float32), at the stated clock."""


def peak_flops(device: str, dtype: str) -> float | None:
    """Return the peak in FLOP/s, for torch's name of a device; None if `PEAKS` lacks the type."""
    name = re.sub(r"^(NVIDIA|Tesla) ", "", device)
    found = next((PEAKS[pattern] for pattern in PEAKS if re.fullmatch(pattern, name)), None)
    tera = found[PEAK_TYPES.index(dtype)] if found else None
    return None if tera is None else tera * 1e12


def compute_peak(*, bf16: bool, fp16: bool, weights: str) -> float | None:
    """Return the peak, in FLOP/s, of this process's accelerator in a training's compute type.

    It is None without an accelerator, or for one that is not in `PEAKS`: no peak is guessed.
    `bf16` and `fp16` are autocast's; `weights` is torch's name for the type of the weights.
    """
    if not torch.cuda.is_available():
        return None
    dtype = "bfloat16" if bf16 else "float16" if fp16 else weights
    if dtype == "float32" and torch.get_float32_matmul_precision() != "highest":
        dtype = "tf32"
    return peak_flops(torch.cuda.get_device_name(), dtype)
