"""Models as plain transformers loads them: here, or elsewhere where a backend has patched them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lamina.depth.loading import load_model
from lamina.measure.isolated import Final, reload
from lamina.runtime.device import compute_device
from lamina.runtime.memory import memory_errors

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lamina.depth.plan import Plan
    from lamina.measure.isolated import Elsewhere
    from lamina.measure.protocol import Meter
    from lamina.weights.source import Source

NO_BASELINE = "give evaluation.baseline=false, which leaves out its evaluation"


@dataclass(frozen=True, kw_only=True)
class Plain:
    """Gives a meter the models that it measures, as anyone would find them."""

    plan: "Plan"
    """Of which layers of which model the run is."""

    dtype: "torch.dtype"
    """Of all floating-point weights."""

    in_4bit: bool
    """Whether linear layers are read into four bits."""

    backend: Any
    """Of the run."""

    meter: "Meter"
    """That measures."""

    def load(self, source: "Source", kept_layers: Sequence[int]) -> "PreTrainedModel | Elsewhere":
        """Return a model with only its kept layers.

        Args:
            source: The larger model's.
            kept_layers: 0-based indices, ascending.
        """
        if self.backend.patches_models:
            name = str(self.dtype).removeprefix("torch.")
            return self.meter.elsewhere(
                source.name, source.revision, kept_layers, name, in_4bit=self.in_4bit
            )
        return load_model(
            source,
            kept_layers,
            dtype=self.dtype,
            device=compute_device(),
            in_4bit=self.in_4bit,
        )

    def untouched(self, source: "Source") -> "PreTrainedModel | Elsewhere":
        """Return the larger model itself.

        Raises:
            ConfigError: There is not the memory for it.
        """
        with memory_errors("the untouched model", lambda: NO_BASELINE):
            return self.load(source, range(self.plan.num_layers))

    def reduced(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        """Measure the reduced model before it is healed.

        Args:
            model: As the backend loaded it, without an adapter.
            tokenizer: Its own.
        """
        count, source = model.num_parameters(), self.plan.source
        measured: PreTrainedModel | Elsewhere = model
        own = self.backend.patches_models or (self.in_4bit and self.backend.own_four_bits)
        if source is not None and own:
            measured = self.load(source, self.plan.kept_layers)
        untouched = source is not None and not self.plan.is_reduced
        self.meter.reduced(measured, tokenizer, parameters=count, untouched=untouched)

    def final(
        self, final: Final
    ) -> "tuple[PreTrainedModel | Elsewhere, PreTrainedTokenizerBase | None]":
        """Return what the run wrote, the way a user would load it."""
        revision = self.plan.source.revision if self.plan.source else None
        if not self.backend.patches_models:
            return reload(final, revision)
        name, dtype = str(final.folder), final.dtype
        return self.meter.elsewhere(name, revision, None, dtype, in_4bit=final.in_4bit), None
