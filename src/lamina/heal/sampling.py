"""Equal shares of the rows for each process, without a row that counts twice.

Accelerate 1.15 fills the last batches up with rows from the beginning; here rows of which no token
is trained do that, so that losses are those of one process.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Sampler

from lamina.data.tokenization import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset
    from torch.utils.data import DataLoader


def filled(rows: "Dataset", multiple: int, padding: int) -> "Dataset":
    """Return the rows and, at their end, as many without trained tokens as make a multiple.

    Args:
        rows: Tokenized, and packed or not.
        multiple: Of rows: what all processes take at once.
        padding: Token of which those rows consist: what counts tokens leaves it out.
    """
    from datasets import Dataset, concatenate_datasets

    missing = -len(rows) % multiple
    if not missing:
        return rows
    silent = {"input_ids": [padding] * 2, "labels": [IGNORED] * 2, "seq_lengths": [2]}
    columns = {name: [silent[name]] * missing for name in rows.column_names}
    return concatenate_datasets([rows, Dataset.from_dict(columns, features=rows.features)])


def set_epoch(loader: "DataLoader", epoch: int) -> None:
    """Give a data loader the order of an epoch, 0-based.

    Where several processes go on in the middle of an epoch, accelerate 1.15 and transformers 5.17
    do not reach the sampler below two others: the rest of the epoch would be that of the first one.
    """
    node: Any = loader
    while getattr(node, "batch_sampler", None) is not None:
        node = node.batch_sampler
    if hasattr(node, "sampler") and hasattr(node.sampler, "set_epoch"):
        node.sampler.set_epoch(epoch)


class ShuffledThenFilled(Sampler[int]):
    """The order in which one process would take the rows, and then those that fill up."""

    def __init__(self, rows: "Dataset", multiple: int, seed: int | None) -> None:
        """Take what decides the order.

        Args:
            rows: Before they were filled up.
            multiple: As for `filled`.
            seed: Of the order, in the first epoch.
        """
        self.shuffled = SeedableRandomSampler(rows, data_seed=seed)
        self.total = len(rows) + -len(rows) % multiple

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        yield from self.shuffled
        yield from range(len(self.shuffled), self.total)

    def set_epoch(self, epoch: int) -> None:
        """Give the order of an epoch, 0-based."""
        self.shuffled.set_epoch(epoch)
