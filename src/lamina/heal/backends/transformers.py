"""Plain transformers, which other backends build on, and what they need to know of a training."""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lamina.depth.plan import Plan
from lamina.heal.adapters import ALL_LINEAR, Adapter, Partial
from lamina.runtime.device import compute_device
from lamina.runtime.sizes import trained_weights

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a backend needs to know about the training it loads a model for."""

    adapter: Adapter
    """Which weights are trained."""
    max_seq_length: int
    """Most tokens in one sequence."""
    gradient_checkpointing: bool
    """Whether the backward pass recomputes activations."""
    seed: int
    """Seed of the adapter's initial weights."""
    folder: Path
    """Where to write a reduced model while it is loaded."""
    in_float32: bool = False
    """Whether the model's own trained weights become float32; bfloat16 loses small updates."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A provider of models and kernels: those of transformers, unless overridden."""

    name: ClassVar[str]
    decides: ClassVar[tuple[str, ...]] = ()
    """Shared parameters that the backend sets itself, regardless of the config."""
    has_4bit_kernels: ClassVar[bool] = False
    """Whether it multiplies 4-bit weights with its own kernels."""
    trains_float32: ClassVar[bool] = True
    """Whether it can train a bfloat16 model's own weights in float32."""

    @property
    def patches_model_classes(self) -> bool:
        """Whether models in this process differ from those that plain transformers loads."""
        return False

    def muted(self) -> AbstractContextManager[None]:
        """Keep what the backend prints off the console."""
        return nullcontext()

    def prepare(self, folder: Path) -> None:
        """Import what patches libraries before them, with its caches in the run folder.

        By default nothing does.
        """

    def load_model(self, plan: Plan, dtype: "torch.dtype", training: Training) -> "PreTrainedModel":
        """Load a plan's model with only its kept layers; may raise ModelError or OutputError."""
        from lamina.depth.loading import load_model

        assert plan.source is not None
        device, in_4bit = compute_device(), training.adapter.in_4bit
        return load_model(
            plan.source, plan.kept_layers, dtype=dtype, device=device, in_4bit=in_4bit
        )

    def add_adapter(
        self, model: "PreTrainedModel", training: Training
    ) -> "tuple[PreTrainedModel, LoraConfig | None]":
        """Seed and add the adapter; return the model, and what TRL must still add."""
        from transformers import set_seed

        set_seed(training.seed)
        if isinstance(training.adapter, Partial):
            training.adapter.freeze(model)
        if training.in_float32:
            for weights in trained_weights(model):
                weights.data = weights.data.float()
        config = training.adapter.peft_config()
        if config is not None and config.target_modules == ALL_LINEAR:
            config.exclude_modules = excluded(config.exclude_modules, _not_adaptable(model))
        return model, config

    def preserves(self, field: str, training: Training, *, given: bool) -> bool:
        """Whether a field of SFTConfig must reach the trainer unchanged.

        `given` says whether the config sets it; otherwise it has TRL's default.
        """
        return True


def excluded(given: str | Sequence[str] | None, ends: Sequence[str]) -> str | list[str] | None:
    """Add ends of names to PEFT's `exclude_modules`: ends of names as well, or one pattern."""
    if isinstance(given, str):
        return "|".join([f"(?:{given})", *(rf"(?:.*\.)?{re.escape(end)}" for end in ends)])
    return sorted({*(given or ()), *ends}) or None


def _not_adaptable(model: "PreTrainedModel") -> list[str]:
    """Return the ends of the names of linear layers that PEFT 0.21 cannot adapt.

    Routers such as Llama 4's return several values, where PEFT expects one. Mamba's kernels read
    the weight of the output projection and would not see its adapter.
    """
    from torch.nn import Linear

    routers = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, Linear) and hasattr(module, "top_k")
    }
    state_spaces = {
        f"{name.rpartition('.')[2]}.out_proj"
        for name, module in model.named_modules()
        if hasattr(module, "A_log") and hasattr(module, "D") and hasattr(module, "out_proj")
    }
    return sorted(routers | state_spaces)


@dataclass(frozen=True, kw_only=True)
class Transformers(Backend):
    """Models and kernels of plain transformers."""

    name: ClassVar[str] = "transformers"
