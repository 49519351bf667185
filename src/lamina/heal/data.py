"""Data sets: where training and evaluation rows come from. Each source loads two splits of rows.

Rows are not looked into here but for their columns; `lamina.heal.tokenization` reads each of them
and names the one that cannot be used.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.depth.hub import is_reachable
from lamina.errors import DataError
from lamina.heal.jsonl import read_jsonl

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Split:
    """Rows and the name by which an error speaks of them."""

    rows: "Dataset"
    origin: str


@dataclass(frozen=True)
class Splits:
    """Training and evaluation rows; no row is in both."""

    train: Split
    eval: Split


@dataclass(frozen=True, kw_only=True)
class Jsonl:
    """Local files with one JSON object a line."""

    train: str
    """Path of the training rows."""

    eval: str | None
    """Path of the evaluation rows; None holds out `eval_fraction` of the training rows."""

    eval_fraction: float
    """Share of the training rows that is held out where `eval` is None, above 0 and below 1."""

    loss_on: str
    """Tokens that are trained: assistant, completion, all or auto."""

    def load(self) -> Splits:
        """Read the files.

        Raises:
            DataError: A file is missing or empty, or a line is not a JSON object.
        """
        train = Split(read_jsonl("data.train", self.train), self.train)
        if self.eval is None:
            return held_out(train, self.eval_fraction)
        return Splits(train, Split(read_jsonl("data.eval", self.eval), self.eval))


@dataclass(frozen=True, kw_only=True)
class Hub:
    """A data set of the hub."""

    name: str
    """Hub id."""

    config: str | None
    """Its configuration, where it has several."""

    train: str
    """Split with the training rows."""

    eval: str | None
    """Split with the evaluation rows; None holds out `eval_fraction` of the training rows."""

    eval_fraction: float
    """Share of the training rows that is held out where `eval` is None, above 0 and below 1."""

    loss_on: str
    """Tokens that are trained: assistant, completion, all or auto."""

    def load(self) -> Splits:
        """Download the splits, or take them from the cache.

        Raises:
            DataError: The hub cannot be reached, or has no such data set or split, or the data set
                cannot be read.
        """
        names = [name for name in (self.train, self.eval) if name is not None]
        train, *rest = map(Split, self._load(names), [f"{self.name} {name}" for name in names])
        return Splits(train, rest[0]) if rest else held_out(train, self.eval_fraction)

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
class Disk:
    """A folder written by `save_to_disk`."""

    path: str
    """The folder."""

    train: str
    """Split with the training rows."""

    eval: str | None
    """Split with the evaluation rows; None holds out `eval_fraction` of the training rows."""

    eval_fraction: float
    """Share of the training rows that is held out where `eval` is None, above 0 and below 1."""

    loss_on: str
    """Tokens that are trained: assistant, completion, all or auto."""

    def load(self) -> Splits:
        """Open the folder.

        Raises:
            DataError: It is missing, is no saved data set, or lacks a split.
        """
        from datasets import DatasetDict, load_from_disk

        if not Path(self.path).is_dir():
            raise DataError(f"data.path={self.path}: no such folder")
        try:
            saved = load_from_disk(self.path)
        except (FileNotFoundError, ValueError) as error:
            raise DataError(f"data.path={self.path}: not written by save_to_disk") from error
        if not isinstance(saved, DatasetDict):
            return held_out(Split(saved, self.path), self.eval_fraction)
        for key, name in (("train", self.train), ("eval", self.eval)):
            if name is not None and name not in saved:
                raise DataError(f"data.{key}={name}: {self.path} has the splits {', '.join(saved)}")
        train = Split(saved[self.train], f"{self.path} {self.train}")
        if self.eval is None:
            return held_out(train, self.eval_fraction)
        return Splits(train, Split(saved[self.eval], f"{self.path} {self.eval}"))


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """The project's own generator; see `lamina.heal.synthetic`."""

    train_rows: int
    """Rows for training."""

    eval_rows: int
    """Held-out rows; no question stands in both."""

    seed: int
    """Of the rows."""

    loss_on: str
    """Tokens that are trained: assistant, all or auto."""

    def load(self) -> Splits:
        """Generate both splits."""
        from datasets import Dataset

        from lamina.heal.synthetic import generate_rows

        train = Dataset.from_list(generate_rows("train", self.train_rows, self.seed))
        held = Dataset.from_list(generate_rows("eval", self.eval_rows, self.seed))
        return Splits(Split(train, "synthetic train"), Split(held, "synthetic eval"))


DataSource = Jsonl | Hub | Disk | Synthetic
"""Anything with `load` and `loss_on`."""


def held_out(split: Split, fraction: float) -> Splits:
    """Hold out a share of the rows for evaluation, the same rows whatever the run's seed.

    Both parts keep the rows' order.

    Raises:
        DataError: The share is not between 0 and 1, or leaves one side empty.
    """
    if not 0 < fraction < 1:
        raise DataError(f"data.eval_fraction={fraction}: give a share above 0 and below 1")
    count = len(split.rows)
    size = round(count * fraction)
    if not 0 < size < count:
        raise DataError(
            f"data.eval_fraction={fraction} of {count} rows in {split.origin} leaves one "
            "side empty: give data.eval or more rows"
        )
    held = set(random.Random(0).sample(range(count), size))
    return Splits(
        Split(
            split.rows.select([i for i in range(count) if i not in held]),
            f"{split.origin} (training part)",
        ),
        Split(split.rows.select(sorted(held)), f"{split.origin} (held-out part)"),
    )


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
