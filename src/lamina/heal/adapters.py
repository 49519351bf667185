"""Adapters: which weights are trained."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from lamina.errors import ConfigError

if TYPE_CHECKING:
    from peft import LoraConfig

ALL_LINEAR = "all-linear"
"""Stands for every linear layer but the output head."""


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

    further: dict[str, Any]
    """Any other fields of PEFT's LoraConfig."""

    name: ClassVar[str] = "lora"

    in_4bit: ClassVar[bool] = False

    @classmethod
    def of(cls, **given: Any) -> "Lora":
        """Build one from the keys of the config's node: ours, and any other of LoraConfig."""
        own = {field.name for field in fields(cls)}
        named = {key: value for key, value in given.items() if key in own}
        further = {key: value for key, value in given.items() if key not in own}
        return cls(**named, further=further)

    def settings(self) -> dict[str, Any]:
        """Return what is asked for, under PEFT's names."""
        return {
            "r": self.r,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "bias": self.bias,
            "target_modules": self.target_modules,
            **self.further,
        }

    def peft_config(self) -> "LoraConfig":
        """Return PEFT's form of these settings.

        Raises:
            ConfigError: PEFT refuses them.
        """
        from peft import LoraConfig, LoraRuntimeConfig

        settings = self.settings()
        try:
            if "runtime_config" in settings:  # the one nested class that PEFT does not build itself
                settings["runtime_config"] = LoraRuntimeConfig(**settings["runtime_config"])
            return LoraConfig(task_type="CAUSAL_LM", **settings)
        except (TypeError, ValueError, ImportError) as error:
            raise ConfigError(f"adapter: {str(error).splitlines()[0]}") from error


@dataclass(frozen=True, kw_only=True)
class Full:
    """Every weight is trained; there is no adapter."""

    name: ClassVar[str] = "full"

    in_4bit: ClassVar[bool] = False

    def settings(self) -> dict[str, Any]:
        """Return nothing: nothing is asked of PEFT."""
        return {}

    def peft_config(self) -> None:
        """Return nothing: PEFT is not used."""


Adapter = Lora | Full
"""Anything with `name`, `in_4bit`, `settings` and `peft_config`."""
