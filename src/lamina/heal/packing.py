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


def total_steps(sequences: int, arguments: "SFTConfig") -> int:
    """Return the optimizer steps of a training on one device.

    Args:
        sequences: Rows or packs of one epoch.
        arguments: Of the training.
    """
    if arguments.max_steps > 0:
        return int(arguments.max_steps)
    at_once = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    return math.ceil(-(-sequences // at_once) * arguments.num_train_epochs)
