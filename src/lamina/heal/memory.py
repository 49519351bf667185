"""Where memory is short: the settings that would need less, in order, and what each saves."""

from collections.abc import Iterator, Sequence

from lamina.depth.quantization import QUANTIZED_BYTES
from lamina.heal.need import Need
from lamina.units import sized

SUGGESTIONS = 3
"""Settings that a message names."""

WORTHWHILE = 0.02
"""Share of all that is needed that a suggestion saves at least."""


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
