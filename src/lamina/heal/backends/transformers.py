"""The backend of the transformers library."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from lamina.heal.backends.training import Backend, Training
from lamina.runtime.device import compute_device

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from transformers import PreTrainedModel

    from lamina.weights.source import Source


@dataclass(frozen=True, kw_only=True)
class Transformers(Backend):
    """Models and kernels of plain transformers."""

    name: ClassVar[str] = "transformers"

    @override
    def load_model(
        self,
        source: "Source",
        kept_layers: Sequence[int],
        dtype: "torch.dtype",
        training: Training,
    ) -> "PreTrainedModel":
        from lamina.depth.loading import load_model

        device, in_4bit = compute_device(), training.adapter.in_4bit
        return load_model(source, kept_layers, dtype=dtype, device=device, in_4bit=in_4bit)

    @override
    def add_adapter(
        self, model: "PreTrainedModel", training: Training
    ) -> "tuple[PreTrainedModel, LoraConfig | None]":
        from transformers import set_seed

        set_seed(training.seed)
        return model, training.adapter.peft_config()
