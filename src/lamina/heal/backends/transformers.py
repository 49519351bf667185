"""The backend of the transformers library."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from lamina.depth.plan import Plan
from lamina.heal.backends.training import Backend, Training
from lamina.runtime.device import compute_device

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Transformers(Backend):
    """Models and kernels of plain transformers."""

    name: ClassVar[str] = "transformers"

    @override
    def load_model(self, plan: Plan, dtype: "torch.dtype", training: Training) -> "PreTrainedModel":
        from lamina.depth.loading import load_model

        assert plan.source is not None
        device, in_4bit = compute_device(), training.adapter.in_4bit
        return load_model(
            plan.source, plan.kept_layers, dtype=dtype, device=device, in_4bit=in_4bit
        )

    @override
    def add_adapter(
        self, model: "PreTrainedModel", training: Training
    ) -> "tuple[PreTrainedModel, LoraConfig | None]":
        from transformers import set_seed

        set_seed(training.seed)
        return model, training.adapter.peft_config()
