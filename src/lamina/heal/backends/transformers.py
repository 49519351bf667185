"""Backends: who provides the model's code and its kernels."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lamina.heal.backends.unsloth import Unsloth
from lamina.runtime.device import compute_device

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from transformers import PreTrainedModel

    from lamina.heal.backends.training import Training
    from lamina.weights.source import Source


@dataclass(frozen=True, kw_only=True)
class Transformers:
    """Models and kernels of the transformers library."""

    name: ClassVar[str] = "transformers"

    decides: ClassVar[tuple[str, ...]] = ()
    """Shared parameters that the backend takes no value of, as it has its own way."""

    patches_models: ClassVar[bool] = False

    own_four_bits: ClassVar[bool] = False
    """Whether weights in four bits are multiplied by kernels that nobody else has."""

    def quietly(self) -> AbstractContextManager[None]:
        """Do nothing: nobody speaks."""
        return nullcontext()

    def prepare(self, folder: Path) -> None:
        """Do nothing: the libraries are imported where they are used."""

    def load_model(
        self,
        source: "Source",
        kept_layers: Sequence[int],
        dtype: "torch.dtype",
        training: "Training",
    ) -> "PreTrainedModel":
        """Load the model with only its kept layers; see `lamina.depth.loading.load_model`."""
        from lamina.depth.loading import load_model

        return load_model(
            source,
            kept_layers,
            dtype=dtype,
            device=compute_device(),
            in_4bit=training.adapter.in_4bit,
        )

    def adapted(
        self, model: "PreTrainedModel", training: "Training"
    ) -> "tuple[PreTrainedModel, LoraConfig | None]":
        """Return the model as it is, and the adapter's config: TRL gives it to the model."""
        from transformers import set_seed

        set_seed(training.seed)
        return model, training.adapter.peft_config()

    def keeps(self, field: str, training: "Training", *, asked: bool) -> bool:
        """Whether a field of SFTConfig has to be in use as it was given: each has."""
        return True


@dataclass(frozen=True, kw_only=True)
class Auto:
    """Unsloth where everything speaks for it, transformers elsewhere; settled before a run."""

    statistics: bool
    """Whether Unsloth, where it is chosen, may tell its makers about the machine."""

    name: ClassVar[str] = "auto"


Backend = Transformers | Unsloth
"""Anything with the methods of `Transformers`."""
