"""Adapters: which weights are trained."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from peft import LoraConfig


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank updates beside frozen linear layers (Hu et al. 2021, arXiv:2106.09685)."""

    r: int
    """Rank of the update."""

    alpha: int
    """Scale of the update: alpha / r."""

    dropout: float
    """Probability with which an input of the update is zeroed in training."""

    bias: str
    """Which biases are trained: none, all or lora_only."""

    target_modules: Any
    """Module names, or all-linear: every linear layer but the output head."""

    name: ClassVar[str] = "lora"

    def peft_config(self) -> "LoraConfig":
        """Return PEFT's form of these settings."""
        from peft import LoraConfig

        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            bias=self.bias,
            target_modules=self.target_modules,
        )


@dataclass(frozen=True, kw_only=True)
class Full:
    """Every weight is trained; there is no adapter."""

    name: ClassVar[str] = "full"

    def peft_config(self) -> None:
        """Return nothing: PEFT is not used."""


Adapter = Lora | Full
"""Anything with `name` and `peft_config`."""
