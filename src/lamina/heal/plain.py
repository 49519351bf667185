"""Models as plain transformers loads them: here, or elsewhere where a backend has patched them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lamina.depth.loading import load_model
from lamina.heal.final import Final, reload
from lamina.measure.device import compute_device

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lamina.depth.plan import Plan
    from lamina.depth.source import Source
    from lamina.heal.backends import Backend
    from lamina.measure.elsewhere import Elsewhere
    from lamina.measure.meter import Meter


def plain_model(
    source: "Source",
    kept_layers: Sequence[int],
    dtype: "torch.dtype",
    backend: "Backend",
    meter: "Meter",
) -> "PreTrainedModel | Elsewhere":
    """Return a model with only its kept layers, for measuring.

    Args:
        source: The larger model's.
        kept_layers: 0-based indices, ascending.
        dtype: Of all floating-point weights.
        backend: Of the run.
        meter: That will measure it.
    """
    if backend.patches_models:
        name = str(dtype).removeprefix("torch.")
        return meter.elsewhere(source.name, source.revision, kept_layers, name)
    return load_model(source, kept_layers, dtype=dtype, device=compute_device())


def measure_reduced(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    plan: "Plan",
    dtype: "torch.dtype",
    backend: "Backend",
    meter: "Meter",
) -> None:
    """Measure a reduced model before it is healed.

    Args:
        model: As the backend loaded it, without an adapter.
        tokenizer: Its own.
        plan: Of which layers of which model it is.
        dtype: Of all its floating-point weights.
        backend: Of the run.
        meter: That measures it.
    """
    count, untouched = model.num_parameters(), plan.source is not None and not plan.is_reduced
    measured: PreTrainedModel | Elsewhere = model
    if plan.source is not None and backend.patches_models:
        measured = plain_model(plan.source, plan.kept_layers, dtype, backend, meter)
    meter.reduced(measured, tokenizer, parameters=count, untouched=untouched)


def plain_final(
    final: Final, plan: "Plan", backend: "Backend", meter: "Meter"
) -> "tuple[PreTrainedModel | Elsewhere, PreTrainedTokenizerBase | None]":
    """Return what a run wrote, the way a user would load it, for measuring.

    Args:
        final: What was written.
        plan: Of which layers of which model it is.
        backend: Of the run.
        meter: That will measure it.
    """
    revision = plan.source.revision if plan.source else None
    if backend.patches_models:
        return meter.elsewhere(str(final.folder), revision, None, final.dtype), None
    return reload(final, revision)
