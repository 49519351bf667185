"""budget.tokens: a training stops at the first step that reaches so many trained tokens."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from lamina.data.cache import cache_errors
from lamina.data.tokenization import IGNORED
from lamina.errors import ConfigError
from lamina.heal.packing import batch_size, packed
from lamina.runtime import distributed
from lamina.units import parse_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy
    from datasets import Dataset
    from trl import SFTConfig

LARGEST_SHARE = 0.02
"""Largest share of the budget that one step may train: the run misses it by less than that."""

KNOWN_ORDERS = (None, "random", "sequential")
"""Values of train_sampling_strategy with which the steps' rows are known beforehand."""

CHANGES_THE_ORDER = ("dataloader_drop_last", "accelerator_config", "shuffle_dataset")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much a run trains, in place of max_steps and num_train_epochs."""

    tokens: Any
    """Trained tokens, those with a label, of all processes; None for no budget."""

    def problems(self) -> Iterator[str]:
        """Refuse a number that cannot be read."""
        try:
            if self.tokens is not None:
                parse_tokens("budget.tokens", self.tokens)
        except ConfigError as error:
            yield str(error)

    def conflicts(self, arguments: Mapping[str, Any]) -> Iterator[str]:
        """Refuse a second length, and arguments with which the order of rows is not known."""
        if self.tokens is None:
            return
        if (steps := arguments.get("max_steps")) not in (None, -1):
            yield (
                f"budget.tokens={self.tokens} and max_steps={steps}: set only one of them; "
                "max_steps=-1 leaves the length to the budget"
            )
        if (strategy := arguments.get("train_sampling_strategy")) not in KNOWN_ORDERS:
            yield (
                f"budget.tokens={self.tokens} needs trainer.args.train_sampling_strategy=random or "
                f"sequential, not {strategy}"
            )
        for key in CHANGES_THE_ORDER:
            if arguments.get(key):
                yield f"budget.tokens={self.tokens} and trainer.args.{key}: leave out one of them"

    def set_steps(
        self,
        arguments: "SFTConfig",
        rows: "Dataset",
        processes: int,
        *,
        share: Fraction | int = 1,
        spent: int = 0,
    ) -> None:
        """Set max_steps to the first step that reaches the budget; all processes must call it.

        `rows` are tokenized, but not packed. The order of a training is known before it: it follows
        from the seed and the epoch. In a ladder the round ends at a `share` of the budget, of which
        those before it have `spent` so many tokens. Raises ConfigError if one step trains too much.
        """
        if self.tokens is None:
            return
        whole = parse_tokens("budget.tokens", self.tokens)
        wanted = max(1, int(whole * share) - spent)
        with cache_errors():  # TRL caches packs
            packs = distributed.first_process_first(
                "packs", lambda: packed({"train": rows}, arguments)["train"]
            )
        counts = trained_tokens(packs)
        if not (each := int(counts.sum())):
            raise ConfigError(f"budget.tokens={self.tokens}: the data has no trained token")
        size = batch_size(arguments, processes)
        epochs = (wanted - 1) // each  # that end before the budget is reached
        steps = tokens_of_steps(counts, _order(len(counts), arguments, epochs), size)
        if (largest := int(steps.max())) > LARGEST_SHARE * whole:
            raise ConfigError(
                f"budget.tokens={self.tokens}, but one step trains up to {largest:,} tokens, more "
                f"than {LARGEST_SHARE:.0%} of it: lower per_device_train_batch_size, "
                "gradient_accumulation_steps or max_seq_length, or raise budget.tokens"
            )
        last = int(steps.cumsum().searchsorted(wanted - epochs * each))
        arguments.max_steps = epochs * len(steps) + last + 1


def trained_tokens(sequences: "Dataset") -> "numpy.ndarray":
    """Return how many tokens of each row or pack are trained: none is a document's first."""
    import numpy

    counts = []
    columns = [name for name in ("labels", "seq_lengths") if name in sequences.column_names]
    for batch in sequences.select_columns(columns).with_format("numpy").iter(1000):
        for number, labels in enumerate(batch["labels"]):
            lengths = batch["seq_lengths"][number] if len(columns) > 1 else [len(labels)]
            starts = numpy.cumsum([0, *lengths[:-1]])
            is_trained = labels != IGNORED
            counts.append(numpy.count_nonzero(is_trained) - numpy.count_nonzero(is_trained[starts]))
    return numpy.array(counts, dtype=numpy.int64)


def tokens_of_steps(counts: "numpy.ndarray", order: "Iterable[int]", size: int) -> "numpy.ndarray":
    """Return the trained tokens of each optimizer step of an epoch; `size` counts its sequences.

    The last step may have fewer: gradients are not accumulated beyond an epoch's end.
    """
    import numpy

    ordered = counts[list(order)]
    return numpy.add.reduceat(ordered, range(0, len(ordered), size))


def _order(count: int, arguments: "SFTConfig", epoch: int) -> "Iterable[int]":
    """Return the order in which an epoch, 0-based, takes `count` sequences.

    Several processes take turns in the same order (heal/sampling.py).
    """
    if arguments.train_sampling_strategy == "sequential":
        return range(count)
    from accelerate.data_loader import SeedableRandomSampler

    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    sampler = SeedableRandomSampler(range(count), data_seed=seed)
    sampler.set_epoch(epoch)
    return sampler
