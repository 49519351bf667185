"""Backends: who provides the model's code and its kernels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lamina.errors import ConfigError
from lamina.measure.device import compute_device

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from lamina.depth.source import Source


@dataclass(frozen=True, kw_only=True)
class Transformers:
    """Models and kernels of the transformers library."""

    name: ClassVar[str] = "transformers"

    decides: ClassVar[tuple[str, ...]] = ()
    """Shared parameters that the backend takes no value of, as it has its own way."""

    def load_model(
        self,
        source: "Source",
        kept_layers: Sequence[int],
        dtype: "torch.dtype",
        in_4bit: bool,
    ) -> "PreTrainedModel":
        """Load the model with only its kept layers; see `lamina.depth.loading.load_model`."""
        from lamina.depth.loading import load_model

        device = compute_device()
        return load_model(source, kept_layers, dtype=dtype, device=device, in_4bit=in_4bit)


@dataclass(frozen=True, kw_only=True)
class Unsloth:
    """Unsloth's models and kernels: not built yet, refused before anything starts."""

    name: ClassVar[str] = "unsloth"

    @staticmethod
    def check() -> None:
        """Refuse.

        Raises:
            ConfigError: Always; this version has no Unsloth backend.
        """
        raise ConfigError(
            "backend=unsloth is not part of this version: choose backend=transformers"
        )


Backend = Transformers
"""Anything with `name` and `load_model`."""
