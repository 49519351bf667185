"""Sizes of weights, optimizer states, folders and disks, in bytes."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def weight_bytes(parameters: "Iterable[torch.nn.Parameter]") -> int:
    """Return the bytes of some weights."""
    return sum(parameter.numel() * parameter.itemsize for parameter in parameters)


def trained_weights(model: "PreTrainedModel") -> "list[torch.nn.Parameter]":
    """Return the weights that are trained."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def state_bytes(state: Mapping[Any, Mapping[str, Any]]) -> int:
    """Return the bytes of `torch.optim.Optimizer.state`."""
    values = (value for entries in state.values() for value in entries.values())
    return sum(value.numel() * value.itemsize for value in values if hasattr(value, "itemsize"))


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder, not of what its links lead to."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def free_disk_bytes(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(existing(folder)).free


def existing(path: Path) -> Path:
    """Return a path if it exists, else the closest one above it that does."""
    return next(each for each in (path, *path.parents) if each.exists())


def most_checkpoints(limit: int, steps: int, interval: int) -> int:
    """Return the most checkpoints that are on disk at once; `limit` is save_total_limit.

    Each evaluation, every `interval` optimizer steps, may save one. An old one goes once the new
    one is complete, and the best one always stays.
    """
    return min(max(limit, 2) + 1, -(-steps // interval))
