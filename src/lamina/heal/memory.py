"""What a training takes in memory, by estimate.

An estimate is good enough to choose by, not to plan with: dry_run=true measures one step. It counts

    weights       their bytes; four bits and their scales with adapter=qlora
    gradients     of each trained weight, in its type
    optimizer     two values of each trained weight, in its type; AdamW with 8 bits: two bytes
    activations   of each token and layer 8 x hidden + 4 x intermediate values; with
                  gradient_checkpointing hidden ones, and one layer's whole
    logits        of each token the vocabulary, as computed and in float32 with its gradient; none
                  with TRL's loss in chunks or liger-kernel's
    mask          a byte for each pair of a batch's tokens, with packing and attention=sdpa or eager

and leaves out what libraries need for themselves.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lamina.depth.quantization import (
    QUANTIZED_BYTES,
    expected_bytes,
    linear_weights,
    scale_bytes,
)
from lamina.heal.adapters import Adapter
from lamina.heal.kernels import MASKED
from lamina.runtime.device import visible_devices
from lamina.runtime.sizes import trained, weight_bytes
from lamina.units import sized

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

PACKAGES = ("bitsandbytes", "liger_kernel")
"""What a suggestion may need; the names under which they are imported."""

SUGGESTIONS = 3
"""Settings that a message names."""

WORTHWHILE = 0.02
"""Share of all that is needed that a suggestion saves at least."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """What the memory of a training depends on, on one device."""

    weights: int
    """Bytes of all weights."""

    linear_weights: int
    """Number of weights that adapter=qlora would have in four bits."""

    linear_bytes: int
    """Of one of them, as long as it is not."""

    trained: int
    """Number of weights that are trained."""

    trained_bytes: int
    """Of one of them."""

    hidden: int
    """Values of one token between two layers."""

    intermediate: int
    """Values of one token inside a layer's MLP."""

    layers: int
    """Decoder layers."""

    vocabulary: int
    """Tokens in it."""

    computed_bytes: int
    """Of one value that is computed: 2 with bfloat16."""

    batch: int
    """Sequences in one forward pass."""

    accumulation: int
    """Forward passes in one optimizer step."""

    length: int
    """Tokens in one sequence."""

    adapter: str
    """The option's name."""

    optimizer: str
    """transformers' name."""

    checkpointing: bool
    """gradient_checkpointing."""

    offloading: bool
    """activation_offloading."""

    chunked_loss: bool
    """Whether the loss is computed without all logits at once."""

    masked: bool
    """Whether a mask of all pairs of a batch's tokens is made."""

    gpus: int
    """Visible ones."""

    spread: bool
    """Whether weights are spread over the processes."""

    installed: frozenset[str]
    """Of bitsandbytes and liger_kernel, those that are there."""

    @classmethod
    def of(
        cls,
        model: "PreTrainedModel",
        arguments: Mapping[str, Any],
        adapter: Adapter,
        *,
        dtype: "torch.dtype",
        liger: bool,
        spread: bool,
    ) -> "Need":
        """Estimate a training's need.

        Args:
            model: With its adapter, or before it gets one; with or without weights.
            arguments: Of SFTConfig.
            adapter: Which weights are trained.
            dtype: Of the weights that are not in four bits.
            liger: Whether liger-kernel computes the loss.
            spread: Whether weights are spread over the processes.
        """
        config, own = model.config.get_text_config(), trained(model)
        weights = weight_bytes(model.parameters()) + scale_bytes(model)
        if model.device.type == "meta":
            weights = model.num_parameters() * dtype.itemsize
            weights = expected_bytes(model, dtype) if adapter.in_4bit else weights
        return cls(
            weights=weights,
            linear_weights=linear_weights(model),
            linear_bytes=dtype.itemsize,
            trained=sum(parameter.numel() for parameter in own),
            trained_bytes=own[0].itemsize,
            hidden=config.hidden_size,
            intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            layers=config.num_hidden_layers,
            vocabulary=config.vocab_size,
            computed_bytes=2 if arguments["bf16"] or arguments.get("fp16") else dtype.itemsize,
            batch=arguments["per_device_train_batch_size"],
            accumulation=arguments["gradient_accumulation_steps"],
            length=arguments["max_length"],
            adapter=adapter.name,
            optimizer=arguments["optim"],
            checkpointing=arguments["gradient_checkpointing"],
            offloading=arguments["activation_offloading"],
            chunked_loss=liger or arguments.get("loss_type") in (None, "chunked_nll"),
            masked=arguments["packing"] and config._attn_implementation in MASKED,
            gpus=visible_devices(),
            spread=spread,
            installed=frozenset(filter(find_spec, PACKAGES)),
        )

    @property
    def activations(self) -> int:
        """Bytes of the activations that wait for the backward pass."""
        layer = 8 * self.hidden + 4 * self.intermediate
        kept = self.layers * self.hidden + layer if self.checkpointing else self.layers * layer
        return self.tokens * kept * self.computed_bytes

    @property
    def logits(self) -> int:
        """Bytes of the logits, in float32 and with their gradient, too."""
        values = 0 if self.chunked_loss else self.tokens * self.vocabulary
        return values * (self.computed_bytes + 8)

    @property
    def mask(self) -> int:
        """Bytes of one batch's mask."""
        return self.tokens**2 if self.masked else 0

    @property
    def gradients(self) -> int:
        """Bytes of the gradients."""
        return self.trained * self.trained_bytes

    @property
    def optimizer_state(self) -> int:
        """Bytes of the optimizer's state."""
        each = 1 if "8bit" in self.optimizer else self.trained_bytes
        return self.trained * 2 * each

    @property
    def total(self) -> int:
        """Bytes of it all."""
        held = self.weights + self.gradients + self.optimizer_state
        return held + self.activations + self.logits + self.mask

    @property
    def tokens(self) -> int:
        """Tokens in one forward pass."""
        return self.batch * self.length


def savings(need: Need) -> list[tuple[str, int]]:
    """Return settings that need less, each with the bytes that it saves, about.

    What costs least comes first: what is free or faster, then what is slower, then what changes
    results. What is set already, or cannot be had here, is left out.
    """
    found = ((setting, round(saved)) for setting, saved in _settings(need))
    return [each for each in found if each[1] >= WORTHWHILE * need.total]


def _settings(need: Need) -> Iterator[tuple[str, float]]:
    moving = need.activations + need.logits
    if need.masked and need.gpus:
        yield "attention=auto", need.mask
    if need.gpus and "liger_kernel" in need.installed:
        yield "kernels=liger", need.logits
    if need.batch > 1:
        fewer = max(n for n in range(1, need.batch) if need.batch % n == 0)
        share = fewer / need.batch
        yield (
            f"per_device_train_batch_size={fewer} "
            f"gradient_accumulation_steps={need.accumulation * need.batch // fewer}",
            moving * (1 - share) + need.mask * (1 - share**2),
        )
    if need.gpus > 1 and need.adapter == "full" and not need.spread:
        held = need.weights + need.gradients + need.optimizer_state
        yield "parallel=fsdp", held * (1 - 1 / need.gpus)
    yield from _slower(need)
    yield from _different(need, moving)


def _slower(need: Need) -> Iterator[tuple[str, float]]:
    """What computes, or moves, the same things more often."""
    if not need.checkpointing:
        layer = 8 * need.hidden + 4 * need.intermediate
        kept = (need.layers * need.hidden + layer) / (need.layers * layer)
        yield "gradient_checkpointing=true", need.activations * (1 - kept)
    if need.gpus and not need.offloading:
        yield "activation_offloading=true", need.activations


def _different(need: Need, moving: int) -> Iterator[tuple[str, float]]:
    """What trains another model."""
    if need.computed_bytes > 2:
        yield "bf16=true", moving / 2
    if need.gpus and "bitsandbytes" in need.installed and "paged" not in need.optimizer:
        yield "optim=paged_adamw_8bit", need.optimizer_state
    if need.adapter == "full":
        yield "adapter=lora", need.gradients + need.optimizer_state
    elif need.adapter != "qlora" and "bitsandbytes" in need.installed:
        yield "adapter=qlora", _in_4bit(need)
    yield (
        f"max_seq_length={need.length // 2}",
        moving / 2 + need.mask * 3 / 4,
    )
    held = need.weights + need.gradients + need.optimizer_state
    yield "one layer less", (held + need.activations) / need.layers


def _in_4bit(need: Need) -> float:
    return need.linear_weights * (need.linear_bytes - QUANTIZED_BYTES)


def advice(need: Need) -> str:
    """Return the next settings to try, in order, with what each saves."""
    return _said(savings(need)[:SUGGESTIONS])


def loading_advice(need: Need) -> str:
    """Return what makes a model smaller that does not even load, with what each saves."""
    found: list[tuple[str, float]] = []
    if need.adapter != "qlora" and "bitsandbytes" in need.installed:
        found.append(("adapter=qlora", _in_4bit(need)))
    if need.linear_bytes > 2:
        held = need.weights
        if need.adapter == "qlora":
            held -= round(need.linear_weights * QUANTIZED_BYTES)
        found.append(("dtype=bfloat16", held / 2))
    found.append(("one layer less", need.weights / need.layers))
    return _said(found)


def _said(found: Sequence[tuple[str, float]]) -> str:
    said = (f"{setting} (saves about {sized(round(saved))})" for setting, saved in found)
    return f"try, in this order: {'; '.join(said)}"
