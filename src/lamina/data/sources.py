"""Data sources: each loads a training and an evaluation split, but does not inspect rows."""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typing_extensions import override

from lamina.data.answers.settings import Answers, AnswerSettings
from lamina.data.blend import blended, source_problems
from lamina.data.cache import is_whole, refuse_unwritable_cache
from lamina.data.chat.template import is_template
from lamina.data.compression import ENDINGS
from lamina.data.files import READERS, find_files, read_files
from lamina.data.splits import Split, Splits, hold_out
from lamina.errors import DataError, reason_of
from lamina.limits import AT_LEAST_ONE, Limit, one_of
from lamina.runtime.attributes import attributes
from lamina.weights.hub import is_reachable, unreachable

if TYPE_CHECKING:
    from datasets import Dataset, SplitInfo


logger = logging.getLogger(__name__)

MaxSamples = Annotated[
    int | None, Limit(lambda value: value >= 1, "use 1 or more, or null for all rows")
]
LossOn = Annotated[str, one_of("auto", "assistant", "completion", "all")]


def _may_exist(template: str) -> bool:
    path = Path(template).expanduser()
    is_name = template not in ("True", "False") and not (path.suffix or path.parent.name)
    return is_name or is_template(path)


Template = Annotated[
    str | None,
    Limit(
        _may_exist,
        "no such template; use a file that ends in .jinja or .j2, chatml, or the name of one of "
        "the tokenizer's templates",
    ),
]
EVAL_SPLITS = ("eval", "validation", "test")
"""Names that data.eval=auto tries, in this order."""

HELD_OUT = "data.eval=null to hold out data.eval_fraction of the training rows"

APART = f"evaluate on other rows, or set {HELD_OUT}"

MaxDropped = Annotated[float, Limit(lambda value: 0 <= value <= 1, "use a fraction from 0 to 1")]
Format = Annotated[str, one_of(*READERS, note=f"; all but parquet also with {ENDINGS}")]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Settings of every source but the generator."""

    eval: str | None
    eval_fraction: float
    max_train_samples: MaxSamples
    max_eval_samples: MaxSamples
    columns: dict[str, str | None]
    """By column of the forms in `lamina.data.forms`: its name in the data set. None if the name is
    the same, or the data set lacks the column."""
    loss_on: LossOn
    chat_template: Template
    """Name of one of the tokenizer's templates, chatml, or a jinja file; None: the tokenizer's."""
    on_bad_row: Annotated[str, one_of("error", "skip")]
    max_dropped: MaxDropped
    answers: Answers
    answer_settings: AnswerSettings

    def problems(self) -> Iterator[str]:
        """Refuse a hold-out that leaves one side empty, and names of columns that are none."""
        if self.eval in (None, "auto") and not 0 < self.eval_fraction < 1:
            yield (
                f"data.eval_fraction={self.eval_fraction}: use a fraction of the training rows, "
                "above 0 and below 1"
            )
        for column, name in self.columns.items():
            if isinstance(name, (list, dict)):
                yield f"data.columns.{column}={name}: expected one column's name, or null"

    def find(self) -> None:
        """Look for local files, if rows are read from any; raises DataError.

        By default there are none to look for.
        """

    @property
    def names(self) -> dict[str, str]:
        """The data set's names in `columns`."""
        return {column: str(name) for column, name in self.columns.items() if name is not None}

    def eval_split(self, train: str, known: Iterable[str], *, is_trained: bool) -> str | None:
        """Return data.eval or, for auto, which of the known splits that is, and say so.

        Raises DataError if `is_trained`: `train`, data.train, has rows of data.eval.
        """
        if is_trained:
            given = f"data.eval={self.eval}: data.train={train}"
            raise DataError(f"{given} also trains on it: {APART}")
        if self.eval != "auto":
            return self.eval
        usable = {*known} - _parts(train)
        found = next(filter(usable.__contains__, EVAL_SPLITS), None)
        held = f"none of {', '.join(EVAL_SPLITS)}; {self.eval_fraction:.3g} of data.train={train}"
        logger.info("data.eval=auto: %s", found or f"{held} is held out")
        return found

    def split(self, rows: "Dataset", origin: str, files: tuple[str, ...] = ()) -> Split:
        """Return rows as a split with these settings."""
        skips = self.on_bad_row == "skip"
        return Split(rows, origin, files=files, names=self.names, skips=skips)

    def splits(self, train: Split, evaluation: Split | None = None) -> Splits:
        """Hold out evaluation rows if there are none, then apply both limits."""
        splits = Splits(train, evaluation) if evaluation else hold_out(train, self.eval_fraction)
        return Splits(
            _first(splits.train, self.max_train_samples), _first(splits.eval, self.max_eval_samples)
        )


def find_apart(train: Mapping[str, str], evaluation: str | None, kind: str) -> None:
    """Find all files without reading them; raises DataError as `find_files`, or if one is in two.

    `train` are paths by their config keys.
    """
    trained = dict[Path, str]()
    for key, name in train.items():
        for path in find_files(key, name, kind):
            given = f"{key}={name}"
            if (first := trained.setdefault(path.resolve(), given)) != given:
                raise DataError(
                    f"{given}: {first} also reads {path}, so its rows would be drawn twice: give "
                    "each source other files"
                )
    for path in find_files("data.eval", evaluation, kind) if evaluation else ():
        if other := trained.get(path.resolve()):
            raise DataError(f"data.eval={evaluation}: {other} also trains on {path}: {APART}")


@dataclass(frozen=True, kw_only=True)
class Files(Rows):
    """Local files of rows."""

    format: Format
    train: str

    @override
    def find(self) -> None:
        find_apart({"data.train": self.train}, self.eval, self.format)

    def load(self) -> Splits:
        """Read the files; raises DataError if one is missing, empty or unreadable as a whole."""
        train = self._read("data.train", self.train)
        return self.splits(train, self._read("data.eval", self.eval) if self.eval else None)

    def _read(self, key: str, name: str) -> Split:
        rows, files = read_files(key, name, self.format, self.names)
        return self.split(rows, name, files)


@dataclass(frozen=True, kw_only=True)
class Blend(Rows):
    """Local files of several sources, from which rows are drawn by weight."""

    format: Format
    sources: dict[str, Any]
    """By name: `train`, a file or folder, and `weight`, above 0."""
    seed: int

    @override
    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from source_problems(self.sources)

    @override
    def find(self) -> None:
        find_apart(self._places, self.eval, self.format)

    def load(self) -> Splits:
        """Read the files and draw rows; raises DataError as `Files` does, or if none are drawn."""
        found = [
            self.split(rows, name, files)
            for key, name in [*self._places.items(), ("data.eval", self.eval)]
            if name
            for rows, files in [read_files(key, name, self.format, self.names)]
        ]
        parts = dict(zip(self.sources, found, strict=False))
        weights = {name: float(source["weight"]) for name, source in self.sources.items()}
        train = blended(parts, weights, self.seed)
        return self.splits(train, found[-1] if self.eval else None)

    @property
    def _places(self) -> dict[str, str]:
        """Path of each source by its config key."""
        return {f"data.sources.{name}.train": s["train"] for name, s in self.sources.items()}


@dataclass(frozen=True, kw_only=True)
class Hub(Rows):
    """A data set on the hub."""

    name: str
    config: str | None
    train: str

    def load(self) -> Splits:
        """Download the splits, or take them from the cache; raises DataError if neither works."""
        from datasets import config
        from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError, DatasetsError
        from huggingface_hub.errors import HTTPError

        refuse_unwritable_cache()
        names = [self.train]
        # Otherwise the library retries for minutes before it turns to its cache.
        offline = config.HF_HUB_OFFLINE or not is_reachable()
        try:
            with attributes(config, HF_HUB_OFFLINE=offline):
                found = self._loaded(names)
                if held := self._held(found[0].info.splits or {}):
                    names.append(held)
                    found += self._loaded([held])
        except DataError:
            raise
        except DatasetNotFoundError as error:
            raise DataError(
                f"data.name={self.name}: no such data set on the hub, or it needs HF_TOKEN"
            ) from error
        except DataFilesNotFoundError as error:
            raise DataError(
                f"data.name={self.name}: holds no data files, such as parquet, jsonl or csv"
            ) from error
        except ConnectionError as error:
            raise DataError(unreachable(f"data.name={self.name}", "data set")) from error
        except (DatasetsError, HTTPError, OSError, TypeError, ValueError) as error:
            reason = str(error.__cause__ or error).strip() or type(error).__name__
            if (problem := self._not_there(reason)) is not None:
                raise problem from error
            raise DataError(f"data.name={self.name}: {reason.splitlines()[0]}") from error
        return self.splits(*map(self.split, found, [f"{self.name} {name}" for name in names]))

    def _held(self, splits: "Mapping[str, SplitInfo]") -> str | None:
        """Return the split or slices with the evaluation rows; ValueError for an unknown one."""
        from datasets import ReadInstruction

        every, sizes = "+".join(splits), {name: each.num_examples for name, each in splits.items()}

        def slices(given: str) -> Any:
            spec = every if given == "all" else given
            return ReadInstruction.from_spec(spec).to_absolute(sizes)

        held = self.eval if self.eval != "auto" else None
        is_trained = held is not None and any(
            a.splitname == b.splitname and max(a.from_, b.from_) < min(a.to, b.to)
            for a, b in product(slices(self.train), slices(held))
        )
        train = every if self.train == "all" else self.train
        return self.eval_split(train, splits, is_trained=is_trained)

    def _loaded(self, names: list[str], mode: str | None = None) -> "list[Dataset]":
        """Load the splits; a damaged cache is made again from the downloaded files."""
        from datasets import load_dataset
        from pyarrow import ArrowException

        with suppress(*(() if mode else (ArrowException, JSONDecodeError))):
            found = load_dataset(self.name, self.config, split=names, download_mode=mode)
            files = [Path(file["filename"]) for rows in found for file in rows.cache_files]
            if mode or all(map(is_whole, files)):
                return list(found)
        return self._loaded(names, "reuse_cache_if_exists")

    def _not_there(self, reason: str) -> DataError | None:
        """Explain datasets' errors about a split or configuration that the data set lacks."""
        known = re.findall(r"'([^']+)'", reason.rpartition("[")[2].partition("]")[0])
        if missing := re.match(r'Unknown split "(.+)"\. Should be one of ', reason):
            key = "train" if missing[1] in _parts(self.train) else "eval"
            return _no_split(key, getattr(self, key), self.name, known)
        if re.match(r"Config name is missing|BuilderConfig '.*' not found", reason):
            given = f"data.config={self.config or 'null'}"
            return DataError(f"{given}: {self.name} has {', '.join(known)}; choose one of them")
        return None


@dataclass(frozen=True, kw_only=True)
class Disk(Rows):
    """A folder written by `save_to_disk`."""

    path: str
    train: str

    @override
    def find(self) -> None:
        if not Path(self.path).is_dir():
            raise DataError(f"data.path={self.path}: no such folder")

    def load(self) -> Splits:
        """Open the folder; raises DataError if it is no readable data set or lacks a split."""
        from datasets import DatasetDict, load_from_disk

        self.find()
        try:
            saved = load_from_disk(self.path)
        except (OSError, ValueError) as error:
            raise DataError(f"data.path={self.path}: {_damage(error)}") from error
        if not isinstance(saved, DatasetDict):
            if self.eval not in (None, "auto"):
                raise DataError(f"data.eval={self.eval}: {self.path} has no splits: set {HELD_OUT}")
            return self.splits(self.split(_as_on_disk(saved), self.path))
        held = self.eval_split(self.train, saved, is_trained=self.eval == self.train)
        names = {"train": self.train, "eval": held}
        for key, name in names.items():
            if name is not None and name not in saved:
                raise _no_split(key, name, self.path, saved)
        chosen = filter(None, names.values())
        return self.splits(
            *(self.split(_as_on_disk(saved[name]), f"{self.path} {name}") for name in chosen)
        )


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """The embedded generator, `lamina.data.synthetic`."""

    train_rows: Annotated[int, AT_LEAST_ONE]
    eval_rows: Annotated[int, AT_LEAST_ONE]
    seed: int
    loss_on: LossOn
    chat_template: Template
    max_dropped: MaxDropped
    answers: Answers
    answer_settings: AnswerSettings

    def find(self) -> None:
        """Do nothing: the rows are generated."""

    def load(self) -> Splits:
        """Generate both splits."""
        from lamina.data.synthetic import cached_split

        train = cached_split("train", self.train_rows, self.seed)
        held = cached_split("eval", self.eval_rows, self.seed)
        return Splits(Split(train, "synthetic train"), Split(held, "synthetic eval"))


DataSource = Files | Blend | Hub | Disk | Synthetic
"""Anything with `find`, `load`, and the settings of `Synthetic` from `loss_on` on."""


def _as_on_disk(rows: "Dataset") -> "Dataset":
    """Identify rows by their files: datasets does so by the functions that made them.

    A sampling model may have written other rows with the same function.
    """
    from datasets.fingerprint import Hasher

    paths = [Path(file["filename"]) for file in rows.cache_files]
    stamps = [(str(path.resolve()), path.stat().st_size, path.stat().st_ctime_ns) for path in paths]
    rows._fingerprint = Hasher.hash([rows._fingerprint, stamps])
    return rows


def _first(split: Split, limit: int | None) -> Split:
    return split if limit is None else split.select(range(len(split.rows))[:limit], split.origin)


def _parts(split: str) -> set[str]:
    """Return the names in a split such as a[:10%]+b."""
    return {part.partition("[")[0] for part in split.split("+")}


def _no_split(key: str, name: str | None, place: str, splits: Iterable[str]) -> DataError:
    """Return the error for a split that a data set lacks."""
    line = f"data.{key}={name}: {place} has the splits {', '.join(splits)}; choose one of them"
    return DataError(line + f", or {HELD_OUT}" * (key == "eval"))


def _damage(error: Exception) -> str:
    """Explain why a folder cannot be opened as a saved data set."""
    name = str(getattr(error, "filename", None) or "")
    if name.endswith(".arrow"):
        return f"the saved data set is incomplete: {Path(name).name} is missing"
    if isinstance(error, FileNotFoundError):
        return "not written by save_to_disk"
    return f"the saved data set is damaged ({reason_of(error).rstrip('.')})"
