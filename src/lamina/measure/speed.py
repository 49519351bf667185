"""How many floating-point operations a training step needs, by a formula that is written down.

A matrix of n weights costs each token that goes through it

    2n  forward                           a multiplication and an addition for each weight
    2n  for the gradient of its weights   where they are trained
    2n  for the gradient of its input     where something that is trained lies before it

so a model that is trained as a whole takes 6n a token, and one with adapters 4n a token and 6m for
the m weights of the adapters. Below the lowest trained weight there is no backward pass at all; in
the layer that has it, attention's counts as a whole. Of a mixture of experts, each token goes
through the active ones.

Attention costs 4 x heads x head_dim operations forward for each pair of a token and one that it
may look at, and twice that backward. Pairs are counted as the mask has them: causal, within one
document and within a sliding window. Layers of other kinds (linear, chunked attention) count with
their matrices alone.

The output head counts for the tokens whose prediction is trained, the lookup of embeddings not at
all; nor do norms, softmax, rotation or the optimizer. What is computed a second time to save memory
(gradient checkpointing, flash attention's backward pass) is not counted twice: the figure is model
FLOPs utilization (Chowdhery et al. 2022, arXiv:2204.02311, appendix B), not hardware's.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

READS_WITHIN = frozenset(
    "o_proj out_proj c_proj dense down_proj dense_4h_to_h fc2 fc_out wo w2".split()
)
"""Matrices that read what others of their sublayer made; the rest reads the layer's own state."""


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Floating-point operations of training, forward and backward."""

    per_token: int
    """For each token that is read, in all layers' matrices."""

    per_target: int
    """For each token whose prediction is trained, in the output head."""

    per_pair: Mapping[int | None, int]
    """By sliding window in tokens, or None: for each pair of tokens that see each other there."""

    def of(self, tokens: float, targets: float, pairs: Mapping[int | None, float]) -> float:
        """Return the operations of some steps.

        Args:
            tokens: That were read, padding left out.
            targets: Tokens of them whose prediction is trained.
            pairs: By window: sum of the number of tokens that each token sees, itself included.
        """
        attention = sum(self.per_pair[window] * pairs[window] for window in self.per_pair)
        return self.per_token * tokens + self.per_target * targets + attention


@dataclass(frozen=True)
class _Matrix:
    layer: int | None
    """0-based; None outside of the decoder layers."""
    sublayer: str
    size: int
    """Multiplications for one token."""
    trained: bool
    within: bool
    """Whether it reads what other matrices of its sublayer made."""
    second: bool
    """Whether it is the second matrix of an adapter, which reads the first one's output."""

    def flops(self, before: bool) -> int:
        """Return its operations for a token; `before`: whether what it reads is trained itself."""
        return self.size * (2 + 2 * self.trained + 2 * before)


def training_flops(model: torch.nn.Module) -> Flops:
    """Count the operations of training a model as it is: which weights are trained is read off it.

    Args:
        model: A causal language model of transformers, with or without PEFT's adapters.
    """
    per_token = per_target = 0
    per_pair: Counter[int | None] = Counter()
    before = any(_is_trained(module) for module in model.modules() if _is_embedding(module))
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
    """Return one layer's operations for a pair of tokens, under its window."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    window = getattr(text, "sliding_window", None)
    kinds = {"full_attention": None, "sliding_attention": window}
    types = getattr(text, "layer_types", None)
    if types and types[layer] not in kinds:
        return Counter()
    work = 4 * heads * head_dim * (3 if backward else 1)
    return Counter({kinds[types[layer]] if types else window: work})


def _matrices(model: torch.nn.Module) -> Iterator[_Matrix]:
    """Find every matrix that tokens are multiplied with, in the order of the forward pass."""
    experts, chosen = _experts(model.config.get_text_config())
    for name, module in model.named_modules():
        for own, weight in module.named_parameters(recurse=False):
            size = _size(module, own, weight)
            if size == 0 or ".original_module" in name:  # PEFT keeps it beside the one it trains
                continue
            if weight.dim() == 3 or ".experts." in name:
                size = size * chosen // experts
            found = re.search(r"\.(\d+)\.([^.]+)", f"{name}.{own}")
            second = ".lora_B" in name
            yield _Matrix(
                layer=int(found[1]) if found else None,
                sublayer=found[2] if found else name,
                size=size,
                trained=weight.requires_grad,
                within=not READS_WITHIN.isdisjoint([*name.split("."), own]),
                second=second,
            )


def _size(module: torch.nn.Module, own: str, weight: torch.nn.Parameter) -> int:
    """Return how many weights of a module's parameter a token is multiplied with; 0: none."""
    if _is_embedding(module) or isinstance(module, torch.nn.Conv1d) or "bias" in own:
        return 0
    if isinstance(module, torch.nn.Linear):
        return int(module.in_features * module.out_features)  # four-bit weights are packed
    return weight.numel() if weight.dim() in (2, 3) else 0


def _experts(config: Any) -> tuple[int, int]:
    """Return how many experts a layer has, and how many of them a token goes through."""
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    numbers = [getattr(config, name, None) for name in names]
    every = next((number for number in numbers if number), 1)
    return every, getattr(config, "num_experts_per_tok", None) or every


def _is_embedding(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Embedding)


def _is_trained(module: torch.nn.Module) -> bool:
    return any(weight.requires_grad for weight in module.parameters())
