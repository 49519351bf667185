"""Equal shares of the rows for each process, with no row counted twice.

Accelerate 1.15 completes the last batches with rows from the beginning. Here rows without a trained
token complete them, so that losses equal those of one process.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Sampler

from lamina.data.tokenization import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset
    from torch.utils.data import DataLoader


def with_padding_rows(rows: "Dataset", multiple: int, padding: int) -> "Dataset":
    """Append rows of padding tokens, which no count includes, up to a multiple of rows.

    `multiple` is the number of rows that all processes take at once, `padding` the token's id.
    """
    from datasets import Dataset, concatenate_datasets

    missing = -len(rows) % multiple
    if not missing:
        return rows
    values = {"input_ids": [padding] * 2, "labels": [IGNORED] * 2, "seq_lengths": [2]}
    columns = {name: [values[name]] * missing for name in rows.column_names}
    return concatenate_datasets([rows, Dataset.from_dict(columns, features=rows.features)])


def set_epoch(loader: "DataLoader", epoch: int) -> None:
    """Set the epoch, 0-based, that decides a data loader's order.

    When several processes resume within an epoch, accelerate 1.15 and transformers 5.17 do not
    reach the sampler below two others, and the rest of the epoch would repeat the first one's.
    """
    node: Any = loader
    while getattr(node, "batch_sampler", None) is not None:
        node = node.batch_sampler
    if hasattr(node, "sampler") and hasattr(node.sampler, "set_epoch"):
        node.sampler.set_epoch(epoch)


class ShuffledThenPadding(Sampler[int]):
    """The order in which one process would take the rows, then the padding rows."""

    def __init__(self, rows: "Dataset", multiple: int, seed: int | None) -> None:
        """Shuffle `rows`, which `with_padding_rows` has not completed to the multiple yet."""
        self.shuffled = SeedableRandomSampler(rows, data_seed=seed)
        self.total = len(rows) + -len(rows) % multiple

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        yield from self.shuffled
        yield from range(len(self.shuffled), self.total)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, 0-based, that decides the order."""
        self.shuffled.set_epoch(epoch)
