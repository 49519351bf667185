"""Estimates of a training's memory, and the settings that need less.

An estimate ranks settings; for a figure to rely on, dry_run=true measures one step. It counts

    weights       their bytes; four bits and their scales with adapter=qlora
    teacher       with trainer=distill the removed layers, and a copy of what is trained
    gradients     of each trained weight, in its type
    optimizer     two values for each trained weight, in its type; one byte each with 8-bit AdamW
    activations   8 x hidden + 4 x intermediate values per token and layer, from the first trained
                  layer on; with gradient_checkpointing the hidden ones, and all of one layer
    logits        the vocabulary per token, as computed and in float32 with its gradient; none
                  with TRL's chunked loss, distillation's or liger-kernel's
    mask          a byte per pair of a batch's tokens, with packing and attention=sdpa or eager

and leaves out what the libraries themselves need.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from lamina.depth.quantization import QUANTIZED_BYTES, expected_bytes, linear_weights, scale_bytes
from lamina.depth.reduction import decoder_stack
from lamina.errors import ConfigError
from lamina.heal.adapters import Adapter, Partial, adapted
from lamina.heal.kernels import MASKED, scales_logits
from lamina.runtime.device import visible_devices
from lamina.runtime.sizes import trained_weights, weight_bytes
from lamina.units import format_bytes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

PACKAGES = ("bitsandbytes", "liger_kernel")
"""Import names of packages that suggested settings need."""

ALL_LOSSES_CHUNKED = Version("1.16")
"""TRL's first version that computes every loss in chunks of tokens; chunked_nll is nll there."""

SUGGESTIONS = 3
"""Most settings in a message."""

WORTHWHILE = 0.02
"""Least share of the total that a suggested setting saves."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """The memory of a training on one device, and what it depends on."""

    parameters: int
    """Number of weights, without those of an adapter yet to be added."""
    weights: int
    """Bytes of all weights."""
    teacher: int
    """Bytes of what a teacher holds besides the weights that it shares; 0 without one."""
    linear_weights: int
    """Number of weights that adapter=qlora quantizes."""
    linear_bytes: int
    """Bytes of each of them, unquantized."""
    trained: int
    """Number of trained weights."""
    trained_bytes: int
    """Bytes of each of them."""
    hidden: int
    """Values per token between two layers."""
    intermediate: int
    """Values per token inside a layer's MLP."""
    layers: int
    differentiated: int
    """Layers that keep values for the backward pass: those from the first trained weight on."""
    vocabulary: int
    computed_bytes: int
    """Bytes of one computed value: 2 with bfloat16."""
    batch: int
    """Sequences in one forward pass."""
    accumulation: int
    """Forward passes in one optimizer step."""
    length: int
    """Tokens in one sequence."""
    adapter: str
    optim: str
    checkpointing: bool
    offloading: bool
    chunked_loss: bool
    """Whether the loss never holds all logits at once."""
    masked: bool
    """Whether attention takes a mask of all pairs of a batch's tokens."""
    gpus: int
    sharded: bool
    """Whether weights are sharded over the processes."""
    installed: frozenset[str]
    """Those of `PACKAGES` that are installed."""

    @classmethod
    def of(
        cls,
        model: "PreTrainedModel",
        arguments: Mapping[str, Any],
        adapter: Adapter,
        *,
        dtype: "torch.dtype",
        liger: bool,
        sharded: bool,
        in_float32: bool = False,
        taught: tuple[int, int] | None = None,
    ) -> "MemoryEstimate":
        """Estimate the memory of a training with arguments of SFTConfig.

        The model has its adapter already, unless it is on the meta device: there it gets one here.
        `dtype` is the type of the unquantized weights; with `in_float32`, the model's own trained
        weights are float32. `taught` counts the weights that a teacher has beside the model's, and
        in all; None without a teacher.
        """
        attention = model.config.get_text_config()._attn_implementation
        sizes = _sizes(model, adapter, dtype)
        if in_float32 and model.device.type == "meta":
            sizes["weights"] += sizes["trained"] * (4 - sizes["trained_bytes"])
            sizes["trained_bytes"] = 4
        own, most = taught or (0, 0)
        copied = sizes["trained"] if adapter.peft_config() is None else 0
        return cls(
            **sizes,
            teacher=min(own + copied, most) * dtype.itemsize,
            computed_bytes=2 if arguments["bf16"] or arguments.get("fp16") else dtype.itemsize,
            batch=arguments["per_device_train_batch_size"],
            accumulation=arguments["gradient_accumulation_steps"],
            length=arguments["max_length"],
            adapter=adapter.name,
            optim=arguments["optim"],
            checkpointing=arguments["gradient_checkpointing"],
            offloading=arguments["activation_offloading"],
            chunked_loss=liger
            or taught is not None
            or Version(version("trl")) >= ALL_LOSSES_CHUNKED
            or (
                arguments.get("loss_type") in (None, "chunked_nll")
                and not scales_logits(model.config)
            ),
            masked=arguments["packing"] and attention in MASKED,
            gpus=visible_devices(),
            sharded=sharded,
            installed=frozenset(filter(find_spec, PACKAGES)),
        )

    @property
    def activations(self) -> int:
        """Bytes kept for the backward pass."""
        layer = 8 * self.hidden + 4 * self.intermediate
        count = self.differentiated
        kept = count * self.hidden + layer if self.checkpointing else count * layer
        return self.tokens * kept * self.computed_bytes

    @property
    def logits(self) -> int:
        """Bytes of the logits as computed, and in float32 with their gradient."""
        values = 0 if self.chunked_loss else self.tokens * self.vocabulary
        return values * (self.computed_bytes + 8)

    @property
    def mask(self) -> int:
        """Bytes of one batch's mask."""
        return self.tokens**2 if self.masked else 0

    @property
    def gradients(self) -> int:
        """Bytes of the trained weights' gradients."""
        return self.trained * self.trained_bytes

    @property
    def optimizer(self) -> int:
        """Bytes of the optimizer's state."""
        return 2 * self.trained * (1 if "8bit" in self.optim else self.trained_bytes)

    @property
    def held(self) -> int:
        """Bytes that stay allocated for the whole training."""
        return self.weights + self.teacher + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """Peak bytes."""
        return self.held + self.activations + self.logits + self.mask

    @property
    def tokens(self) -> int:
        """Tokens in one forward pass."""
        return self.batch * self.length

    def saved_by(self, **changes: Any) -> int:
        """Return the bytes that the training needs less with some fields changed."""
        return self.total - replace(self, **changes).total


def refuse_too_large(estimate: MemoryEstimate, free: int) -> None:
    """Refuse a training whose weights and gradients alone exceed the free memory, in bytes."""
    needed = estimate.weights + estimate.teacher + estimate.gradients
    if needed > free:
        raise ConfigError(
            f"{estimate.parameters:,} weights and the gradients of {estimate.trained:,} take at "
            f"least {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free: keep fewer "
            "layers, or choose adapter=lora or dtype=bfloat16"
        )


def _sizes(model: "PreTrainedModel", adapter: Adapter, dtype: "torch.dtype") -> dict[str, Any]:
    """Return the fields of a MemoryEstimate that the model and its adapter decide."""
    config, is_planned = model.config.get_text_config(), model.device.type == "meta"
    if is_planned and isinstance(adapter, Partial):
        adapter.freeze(model)
    sizes = {
        "parameters": model.num_parameters(),
        "weights": _weight_bytes(model, adapter, dtype),
        "linear_weights": linear_weights(model),
        "linear_bytes": dtype.itemsize,
        "hidden": config.hidden_size,
        "intermediate": getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        "layers": config.num_hidden_layers,
        "vocabulary": config.vocab_size,
    }
    # Last: it adds the adapter's weights to the model.
    model = adapted(model, adapter) if is_planned else model
    trained = trained_weights(model)
    sizes["differentiated"] = _differentiated(model, config.num_hidden_layers)
    sizes["trained"] = sum(parameter.numel() for parameter in trained)
    sizes["trained_bytes"] = dtype.itemsize if is_planned else trained[0].itemsize
    return sizes


def _differentiated(model: "PreTrainedModel", depth: int) -> int:
    """Return how many of the model's layers the backward pass reaches."""
    if trained_weights(model.get_input_embeddings()):
        return depth
    stack = decoder_stack(model, depth)[1]
    return depth - next((at for at, layer in enumerate(stack) if trained_weights(layer)), depth)


def _weight_bytes(model: "PreTrainedModel", adapter: Adapter, dtype: "torch.dtype") -> int:
    if model.device.type != "meta":
        return weight_bytes(model.parameters()) + scale_bytes(model)
    if adapter.in_4bit:
        return expected_bytes(model, dtype)
    return model.num_parameters() * dtype.itemsize


def savings(estimate: MemoryEstimate) -> list[tuple[str, int]]:
    """Return settings that need less memory, each with the bytes it saves.

    The cheapest come first: those that cost no time, then slower ones, then those that change
    results. Settings already in use or unavailable on this machine are left out.
    """
    found = ((setting, round(saved)) for setting, saved in _settings(estimate))
    return [each for each in found if each[1] >= WORTHWHILE * estimate.total]


def _settings(e: MemoryEstimate) -> Iterator[tuple[str, float]]:
    if e.masked and e.gpus:
        yield "attention=auto", e.saved_by(masked=False)
    if e.gpus and "liger_kernel" in e.installed:
        yield "kernels=liger", e.saved_by(chunked_loss=True)
    if e.batch > 1:
        fewer = max(n for n in range(1, e.batch) if e.batch % n == 0)
        accumulation = e.accumulation * e.batch // fewer
        setting = f"per_device_train_batch_size={fewer} gradient_accumulation_steps={accumulation}"
        yield setting, e.saved_by(batch=fewer)
    if e.gpus > 1 and e.adapter == "full" and not e.sharded:
        yield "parallel=fsdp", e.held * (1 - 1 / e.gpus)
    if not e.checkpointing:
        yield "gradient_checkpointing=true", e.saved_by(checkpointing=True)
    if e.gpus and not e.offloading:
        yield "activation_offloading=true", e.activations
    # From here on results change.
    if e.computed_bytes > 2:
        yield "bf16=true", e.saved_by(computed_bytes=2)
    if e.gpus and "bitsandbytes" in e.installed and "paged" not in e.optim:
        yield "optim=paged_adamw_8bit", e.optimizer
    if e.adapter == "full":
        yield "adapter=lora", e.gradients + e.optimizer
    elif e.adapter != "partial":
        yield from _quantized(e)
    yield f"max_seq_length={e.length // 2}", e.saved_by(length=e.length // 2)
    yield "one layer fewer", (e.held + e.activations) / e.layers


def _quantized(e: MemoryEstimate) -> Iterator[tuple[str, float]]:
    if e.adapter != "qlora" and "bitsandbytes" in e.installed:
        yield "adapter=qlora", e.linear_weights * (e.linear_bytes - QUANTIZED_BYTES)


def advice(estimate: MemoryEstimate) -> str:
    """Return the next settings to try, in order, with what each saves."""
    return _listed(savings(estimate)[:SUGGESTIONS])


def loading_advice(estimate: MemoryEstimate) -> str:
    """Return the settings that shrink a model too large to load, with what each saves."""
    found = [*_quantized(estimate)]
    if estimate.linear_bytes > 2:
        unquantized = estimate.weights
        if estimate.adapter == "qlora":
            unquantized -= round(estimate.linear_weights * QUANTIZED_BYTES)
        found.append(("dtype=bfloat16", unquantized / 2))
    found.append(("one layer fewer", estimate.weights / estimate.layers))
    return _listed(found)


def _listed(found: Sequence[tuple[str, float]]) -> str:
    settings = (f"{setting} (saves about {format_bytes(round(saved))})" for setting, saved in found)
    return f"try, in this order: {'; '.join(settings)}"
