"""What a training takes: memory while it runs, disk while it runs and after it."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes, as they were after one step of the training itself."""

    weights: int
    """All of the model's, with its adapter."""

    gradients: int
    """Of the weights that are trained."""

    optimizer: int
    """Its state."""

    peak_memory: int
    """The most that was in use, of the accelerator or of this process: activations are in it."""

    free_memory: int
    """What the accelerator, or the machine, had left before the model was loaded."""

    checkpoint: int
    """One checkpoint: the trained weights, the optimizer's state, the tokenizer."""

    checkpoints: int
    """Checkpoints that lie beside each other at most, the one that is just written included."""

    final: int
    """final/, and final-merged/ where both are asked for."""

    free_disk: int
    """What the disk of output_dir has left."""

    @property
    def disk(self) -> int:
        """Bytes that all files take at most."""
        return self.checkpoint * self.checkpoints + self.final


def weight_bytes(parameters: "Iterable[torch.nn.Parameter]") -> int:
    """Return the bytes of some weights."""
    return sum(parameter.numel() * parameter.itemsize for parameter in parameters)


def trained(model: "PreTrainedModel") -> "list[torch.nn.Parameter]":
    """Return the weights that are trained."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def state_bytes(state: Mapping[Any, Mapping[str, Any]]) -> int:
    """Return the bytes of an optimizer's state.

    Args:
        state: `torch.optim.Optimizer.state`.
    """
    values = (value for entries in state.values() for value in entries.values())
    return sum(value.numel() * value.itemsize for value in values if hasattr(value, "itemsize"))


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def free_disk_bytes(folder: Path) -> int:
    """Return what is left on the disk of a folder that need not exist yet."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


def most_checkpoints(limit: int, steps: int, interval: int) -> int:
    """Return how many checkpoints lie beside each other at most.

    A new one is whole before an old one goes, and the best one stays whatever the limit.

    Args:
        limit: save_total_limit.
        steps: Of the whole training.
        interval: Steps between evaluations, each of which may be followed by a checkpoint.
    """
    return min(max(limit, 2) + 1, -(-steps // interval))
