"""What TRL's trainer makes of tokenized rows, and how many steps they are."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import SFTConfig


def packed(splits: "Mapping[str, Dataset]", arguments: "SFTConfig") -> "dict[str, Dataset]":
    """Return train and eval as the trainer will make them.

    Args:
        splits: Tokenized, not packed.
        arguments: Of the training.
    """
    from trl import pack_dataset

    evaluated = arguments.eval_packing
    wanted = {"train": arguments.packing}
    wanted["eval"] = arguments.packing if evaluated is None else evaluated
    length, strategy = arguments.max_length, arguments.packing_strategy
    return {
        name: pack_dataset(split, length, strategy) if wanted[name] else split
        for name, split in splits.items()
    }


def total_steps(sequences: int, arguments: "SFTConfig", processes: int) -> int:
    """Return the optimizer steps of a training.

    Args:
        sequences: Rows or packs of one epoch.
        arguments: Of the training.
        processes: That share it.
    """
    if arguments.max_steps > 0:
        return int(arguments.max_steps)
    return math.ceil(-(-sequences // batch_size(arguments, processes)) * arguments.num_train_epochs)


def batch_size(arguments: "SFTConfig", processes: int) -> int:
    """Return the sequences in one optimizer step, over all processes."""
    alone = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    return int(alone * processes)


def batch(arguments: "SFTConfig", processes: int) -> str:
    """Say how many sequences are in one optimizer step, and where the number comes from."""
    return (
        f"{batch_size(arguments, processes)} sequences a step: "
        f"per_device_train_batch_size={arguments.per_device_train_batch_size} x {processes} "
        f"processes x gradient_accumulation_steps={arguments.gradient_accumulation_steps}"
    )
