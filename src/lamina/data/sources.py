"""Data sets: where training and evaluation rows come from. Each source loads two splits of rows.

Rows are not looked into here; `lamina.data.tokenization` reads each of them and names the one that
cannot be used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from lamina.data.files import paths_of, read_files
from lamina.data.splits import Split, Splits, first_rows, held_out
from lamina.errors import DataError
from lamina.limits import AT_LEAST_ONE, Limit, one_of
from lamina.weights.hub import is_reachable

if TYPE_CHECKING:
    from datasets import Dataset


MaxTrainSamples = Annotated[
    int | None, Limit(lambda value: value >= 1, "give 1 or more, or null for all rows")
]
LossOn = Annotated[str, one_of("auto", "assistant", "completion", "all")]
MaxDropped = Annotated[float, Limit(lambda value: 0 <= value <= 1, "give 0 to 1")]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What all sources of foreign rows have in common."""

    eval: str | None
    """Where the evaluation rows are, in the same words as `train`; None holds out `eval_fraction`
    of the training rows."""

    eval_fraction: float
    """Share of the training rows that is held out where `eval` is None, above 0 and below 1."""

    max_train_samples: MaxTrainSamples
    """Training rows to use at most, the first ones behind the hold-out; None for all."""

    columns: dict[str, str | None]
    """The data set's own name of each column of a form in `lamina.data.forms`; None where it has
    that very name, or no such column."""

    loss_on: LossOn
    """Tokens that are trained: assistant, completion, all or auto."""

    on_bad_row: Annotated[str, one_of("error", "skip")]
    """What a row that cannot be used does: error, or skip to leave it out and list it."""

    max_dropped: MaxDropped
    """Share of a split's tokens that may be lost beyond max_seq_length, 0 to 1."""

    def problems(self) -> Iterator[str]:
        """Refuse a hold-out that leaves one side empty."""
        if self.eval is None and not 0 < self.eval_fraction < 1:
            yield (
                f"data.eval_fraction={self.eval_fraction}: give a fraction of the training rows, "
                "above 0 and below 1"
            )

    def find(self) -> None:
        """Look for what is read from this machine's disk: a DataError says if it is not there."""

    def split(self, rows: "Dataset", origin: str, files: tuple[str, ...] = ()) -> Split:
        """Return rows as a split that is read as these settings say."""
        names = {name: str(own) for name, own in self.columns.items() if own is not None}
        return Split(rows, origin, files=files, names=names, skips=self.on_bad_row == "skip")

    def splits(self, train: Split, evaluation: Split | None = None) -> Splits:
        """Hold out rows where there are none for evaluation, and use no more than asked for.

        Raises:
            DataError: One side would be empty.
        """
        if evaluation is None:
            found = held_out(train, self.eval_fraction)
        else:
            found = Splits(train, evaluation)
        return first_rows(found, self.max_train_samples)


@dataclass(frozen=True, kw_only=True)
class Files(Rows):
    """Local files of rows."""

    format: Annotated[str, one_of("csv", "json", "jsonl", "parquet")]
    """csv, json, jsonl or parquet."""

    train: str
    """File of the training rows, or a folder of such files, read in the order of their names."""

    def find(self) -> None:
        """Look for the files.

        Raises:
            DataError: There are none.
        """
        for key, name in (("data.train", self.train), ("data.eval", self.eval)):
            if name is not None:
                paths_of(key, name, self.format)

    def load(self) -> Splits:
        """Read the files.

        Raises:
            DataError: A file is missing, empty, or cannot be read as a whole.
        """
        train = self._read("data.train", self.train)
        return self.splits(train, self._read("data.eval", self.eval) if self.eval else None)

    def _read(self, key: str, name: str) -> Split:
        rows, files = read_files(key, name, self.format)
        return self.split(rows, name, files)


@dataclass(frozen=True, kw_only=True)
class Hub(Rows):
    """A data set of the hub."""

    name: str
    """Hub id."""

    config: str | None
    """Its configuration, where it has several."""

    train: str
    """Split with the training rows."""

    def load(self) -> Splits:
        """Download the splits, or take them from the cache.

        Raises:
            DataError: The hub cannot be reached, or has no such data set or split, or the data set
                cannot be read.
        """
        names = [name for name in (self.train, self.eval) if name is not None]
        return self.splits(*map(self.split, self._load(names), [f"{self.name} {n}" for n in names]))

    def _load(self, splits: list[str]) -> "list[Dataset]":
        import httpx
        from datasets import load_dataset
        from datasets.exceptions import DatasetNotFoundError, DatasetsError

        try:
            with _offline_unless_reachable():
                return load_dataset(self.name, self.config, split=splits)
        except DatasetNotFoundError as error:
            raise DataError(
                f"data.name={self.name}: no such data set on the hub, or it needs HF_TOKEN"
            ) from error
        except ConnectionError as error:
            raise DataError(
                f"data.name={self.name}: the hub cannot be reached and the data set is not in the "
                "cache; experiment=quickstart works offline"
            ) from error
        except (DatasetsError, httpx.HTTPError, OSError, TypeError, ValueError) as error:
            reason = str(error.__cause__ or error).strip() or type(error).__name__
            raise DataError(f"data.name={self.name}: {reason.splitlines()[0]}") from error


@dataclass(frozen=True, kw_only=True)
class Disk(Rows):
    """A folder written by `save_to_disk`."""

    path: str
    """The folder."""

    train: str
    """Split with the training rows."""

    def find(self) -> None:
        """Look for the folder.

        Raises:
            DataError: There is none.
        """
        if not Path(self.path).is_dir():
            raise DataError(f"data.path={self.path}: no such folder")

    def load(self) -> Splits:
        """Open the folder.

        Raises:
            DataError: It is missing, is no saved data set, or lacks a split.
        """
        from datasets import DatasetDict, load_from_disk

        self.find()
        try:
            saved = load_from_disk(self.path)
        except (OSError, ValueError) as error:
            raise DataError(f"data.path={self.path}: {_damage(error)}") from error
        if not isinstance(saved, DatasetDict):
            if self.eval is not None:
                raise DataError(
                    f"data.eval={self.eval}: {self.path} has no splits: give data.eval=null, and "
                    "data.eval_fraction of its rows are held out"
                )
            return self.splits(self.split(saved, self.path))
        for key, name in (("train", self.train), ("eval", self.eval)):
            if name is not None and name not in saved:
                raise DataError(f"data.{key}={name}: {self.path} has the splits {', '.join(saved)}")
        names = [name for name in (self.train, self.eval) if name is not None]
        return self.splits(*(self.split(saved[name], f"{self.path} {name}") for name in names))


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """The project's own generator; see `lamina.data.synthetic`."""

    train_rows: Annotated[int, AT_LEAST_ONE]
    """Rows for training."""

    eval_rows: Annotated[int, AT_LEAST_ONE]
    """Held-out rows; no question stands in both."""

    seed: int
    """Of the rows."""

    loss_on: LossOn
    """Tokens that are trained: assistant, all or auto."""

    max_dropped: MaxDropped
    """Share of a split's tokens that may be lost beyond max_seq_length, 0 to 1."""

    def find(self) -> None:
        """Look for nothing: the rows are made here."""

    def load(self) -> Splits:
        """Generate both splits."""
        from lamina.data.synthetic import kept_split

        train = kept_split("train", self.train_rows, self.seed)
        held = kept_split("eval", self.eval_rows, self.seed)
        return Splits(Split(train, "synthetic train"), Split(held, "synthetic eval"))


DataSource = Files | Hub | Disk | Synthetic
"""Anything with `find`, `load`, `loss_on` and `max_dropped`."""


def _damage(error: Exception) -> str:
    """Say what is wrong with a folder that should hold a saved data set."""
    name = str(getattr(error, "filename", None) or "")
    if name.endswith(".arrow"):
        return f"the saved data set is not whole, {Path(name).name} is missing"
    if isinstance(error, FileNotFoundError):
        return "not written by save_to_disk"
    return f"the saved data set is not whole ({str(error).splitlines()[0].rstrip('.')})"


@contextmanager
def _offline_unless_reachable() -> Iterator[None]:
    """Have datasets look into its cache at once where the hub does not answer."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or not is_reachable()
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before
