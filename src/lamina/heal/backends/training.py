"""What a backend has to know of a training."""

from dataclasses import dataclass
from pathlib import Path

from lamina.heal.adapters import Adapter


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a backend has to know of the training that it loads a model for."""

    adapter: Adapter
    """Which weights are trained."""

    max_seq_length: int
    """Tokens at most in one sequence."""

    gradient_checkpointing: bool
    """Whether activations are recomputed in the backward pass."""

    seed: int
    """Of the adapter's first weights."""

    folder: Path
    """Where a model may stand while it is loaded."""
