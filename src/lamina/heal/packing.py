"""Packing: its limits, its sequences and steps, and a check that documents stay apart."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from lamina.errors import ConfigError, reason_of
from lamina.heal.kernels import MASKED, may_need_mask

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from trl import SFTConfig

    from lamina.heal.trainer import TokenLossTrainer

MASK_BYTES = 10**9
"""Largest attention mask, in bytes, for a batch of several rows."""

PROBE_TOKENS = 32
"""Most tokens of each document in `refuse_leaking_packs`."""

TOLERANCES = {4: 1e-3, 2: 2e-2}
"""Largest change of the second document's logits that rounding causes, relative to the largest
logit, by the bytes of the model's type. A leak changes them as much as another prompt does."""


def conflicts(arguments: Mapping[str, Any], max_seq_length: int, attention: str) -> Iterator[str]:
    """Refuse fields of SFTConfig that contradict packing or max_seq_length, and masks too large."""
    if arguments.get("eval_packing") and not arguments.get("packing"):
        yield (
            "trainer.args.eval_packing=True needs packing=true: without it TRL lets packed "
            "documents see each other"
        )
    if arguments.get("packing") and arguments.get("packing_strategy") == "wrapped":
        yield (
            "trainer.args.packing_strategy=wrapped lets packed documents see each other: use bfd, "
            "or packing=false"
        )
    if (given := arguments.get("max_length")) != max_seq_length:
        yield (
            f"trainer.args.max_length={given}, but rows are cut at max_seq_length="
            f"{max_seq_length}: set only max_seq_length"
        )
    if not arguments.get("packing") or not may_need_mask(attention):
        return
    for key in ("per_device_train_batch_size", "per_device_eval_batch_size"):
        batch = arguments.get(key)
        if type(batch) is int and batch > 1 and (batch * max_seq_length) ** 2 > MASK_BYTES:
            fitting = max(1, int(MASK_BYTES**0.5) // max_seq_length)
            yield (
                f"{key}={batch} with packing=true and max_seq_length={max_seq_length}: sdpa's mask "
                f"of one batch would take {(batch * max_seq_length) ** 2 / 10**9:.1f} GB; use "
                f"{fitting}{' or less' if fitting > 1 else ''}, or packing=false"
            )


def packed(splits: "Mapping[str, Dataset]", arguments: "SFTConfig") -> "dict[str, Dataset]":
    """Return the tokenized splits, train and eval, packed as the trainer will pack them."""
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
    """Return the optimizer steps of a training on `sequences` rows or packs per epoch."""
    if arguments.max_steps > 0:
        return int(arguments.max_steps)
    return math.ceil(-(-sequences // batch_size(arguments, processes)) * arguments.num_train_epochs)


def batch_size(arguments: "SFTConfig", processes: int) -> int:
    """Return the sequences in one optimizer step, over all processes."""
    alone = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    return int(alone * processes)


def describe_batch(arguments: "SFTConfig", processes: int) -> str:
    """Return a line with the sequences in one optimizer step and the factors of their number."""
    return (
        f"{batch_size(arguments, processes)} sequences a step: "
        f"per_device_train_batch_size={arguments.per_device_train_batch_size} x {processes} "
        f"processes x gradient_accumulation_steps={arguments.gradient_accumulation_steps}"
    )


def refuse_leaking_packs(trainer: "TokenLossTrainer", rows: "Dataset") -> None:
    """Refuse to pack if the first of two packed documents changes predictions in the second.

    Masks depend on the architecture, the attention implementation and the collator. If one of them
    ignores document boundaries, training silently continues with a wrong loss. The first and the
    last of the rows, tokenized but not packed, serve as documents.
    """
    import torch

    first, second = (rows[index]["input_ids"][:PROBE_TOKENS] for index in (0, len(rows) - 1))
    count = trainer.model.get_input_embeddings().weight.shape[0]
    other = [(token + 1) % count for token in first]
    training = trainer.model.training
    config = trainer.model.config
    named = f"({config.model_type}, attention {config._attn_implementation}"
    trainer.model.eval()
    try:
        with torch.no_grad():
            plain, changed = (_logits(trainer, [before, second]) for before in (first, other))
    except ValueError as error:  # newer transformers refuse it where a kernel is missing
        reason = reason_of(error).rstrip(".")
        raise ConfigError(
            f"packing=True: this model {named}) cannot keep packed documents apart: {reason}; or "
            "set packing=false"
        ) from error
    trainer.model.train(training)
    moved = (plain - changed).abs().max() / plain.abs().max()
    if not moved <= TOLERANCES[_probed_bytes(trainer)]:
        raise ConfigError(
            f"packing=True: packed documents would see each other in this model {named}: other "
            f"tokens in the first change the second's logits by {moved:.2g} of the largest); set "
            "packing=false"
        )


def _probed_bytes(trainer: "TokenLossTrainer") -> int:
    """Return the bytes of a value that the probe computes: 4 if autocast need not round it."""
    in_any_type = trainer.model.config._attn_implementation in MASKED
    return min(4, trainer.model.dtype.itemsize) if in_any_type else 2


def _logits(trainer: "TokenLossTrainer", documents: Sequence[list[int]]) -> "torch.Tensor":
    """Return the logits, (tokens, vocabulary), of the last document in one pack."""
    ids: list[int] = [token for document in documents for token in document]
    lengths = [len(document) for document in documents]
    packed: dict[str, Any] = {"input_ids": ids, "labels": list(ids), "seq_lengths": lengths}
    batch = trainer.data_collator([packed])
    del batch["labels"]  # with labels, TRL's forward pass returns a loss and no logits
    for name, value in batch.items():
        if hasattr(value, "to"):  # from TRL 1.16 on it also gives the largest length, a number
            batch[name] = value.to(trainer.args.device)
    # As in training, where weights may be of two types, or attention takes no float32.
    with nullcontext() if _probed_bytes(trainer) == 4 else trainer.accelerator.autocast():
        logits: torch.Tensor = trainer.model(**batch, use_cache=False).logits[0].float()
    return logits[-lengths[-1] :]
