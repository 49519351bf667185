"""evaluation.json and items.jsonl: what an evaluation found, in all and for each item."""

import json
import math
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from lamina.errors import ModelError
from lamina.runtime.files import disk_errors, finite, write_json
from lamina.weights.source import parse_json, read_json

FORMAT = 1
EVALUATION_FOLDER = "evaluation"
EVALUATION_FILE, ITEMS_FILE = "evaluation.json", "items.jsonl"

ROLES = ORIGINAL, REDUCED, FINAL = "original", "reduced", "final"
"""Of a run's models; also the names of their evaluations' folders."""

LARGEST = 100_000_000
"""Bytes of the largest evaluation.json that is read."""

Flat = str | int | float | bool | None
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure over the items of a task."""

    value: float
    stderr: float | None
    """Standard error over items, of losses over documents; None for a single one."""
    n: int
    """Number of items or documents."""
    chance: float | None = None
    """What guessing reaches; None where there is no such value."""
    higher_is_better: bool | None = None
    """As lm-eval says of its own; None where the name says it."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far a model is from the original on the same text."""

    kl: Metric
    """Divergence of its predictions from the original's, in nats per token."""
    top1: Metric
    """Share of tokens where both find the same one most likely."""


@dataclass(frozen=True, kw_only=True)
class Health:
    """How generated answers end, each as a share of all; only `looped` overlaps the others."""

    ended: float
    looped: float
    capped: float


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """What one model got in one task."""

    kind: str
    """choices, text or generation."""
    items: int
    items_hash: str
    """SHA-256 of what was scored: token ids, their spans and the labels, in the file's order."""
    protocol: dict[str, Flat]
    metrics: dict[str, Metric]
    health: Health | None = None
    agreement: Agreement | None = None
    seconds: float

    @property
    def figures(self) -> dict[str, float]:
        """All figures by name, without their errors."""
        found = {name: metric.value for name, metric in self.metrics.items()}
        agreement = self.agreement
        agreed = {"kl": agreement.kl.value, "top1": agreement.top1.value} if agreement else {}
        return {**found, **(asdict(self.health) if self.health else {}), **agreed}


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast a model reads and writes at one batch size and length."""

    batch: int
    prompt_tokens: int
    new_tokens: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    first_token_seconds: float
    kv_cache_bytes: int
    peak_memory_bytes: int | None
    repeats: int
    spread: float
    """Largest minus smallest time of the repeats, as a share of their median."""


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """Which model was evaluated."""

    name: str
    revision: str | None
    kept_layers: list[int] | None
    layers: int
    parameters: int
    bytes: int
    dtype: str


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """The content of evaluation.json."""

    format: int = FORMAT
    role: str
    """One of `ROLES`; model, if `lamina evaluate` measured it."""
    model: EvaluatedModel
    tasks: dict[str, TaskResult]
    speed: list[Speed] | None
    versions: dict[str, str]
    device: str
    seconds: float
    key: str = ""
    """Identifies the model, the items and the settings: an equal evaluation finds the same."""

    @property
    def figures(self) -> dict[str, dict[str, float]]:
        """The figures of each task by name, without their errors."""
        return {name: task.figures for name, task in self.tasks.items()}


@dataclass(frozen=True, kw_only=True)
class ItemResult:
    """A line of items.jsonl; what a kind of task does not measure is None."""

    task: str
    id: int
    """0-based row of the task's file."""
    correct: bool | None = None
    correct_norm: bool | None = None
    """The same with each choice's log-likelihood divided by its characters."""
    log_likelihoods: list[float] | None = None
    """In nats, one per choice."""
    nll: float | None = None
    """Summed negative log-likelihood of the scored tokens, in nats."""
    tokens: int | None = None
    """Scored tokens, or generated ones."""
    answer: str | None = None
    ended: bool | None = None
    looped: bool | None = None
    kl: float | None = None
    """Divergence from the original, summed over the scored tokens, in nats."""
    top1: int | None = None
    """Scored tokens where the original finds the same one most likely."""


def write_evaluation(folder: Path, result: EvaluationResult) -> None:
    """Write evaluation.json into a folder."""
    write_json(folder / EVALUATION_FILE, asdict(result))


def read_evaluation(folder: Path) -> EvaluationResult:
    """Read a folder's evaluation.json; raises ModelError if it is missing, damaged or newer."""
    path = folder / EVALUATION_FILE
    content = read_json(path, {"format": int}, LARGEST)
    if content["format"] != FORMAT:
        raise ModelError(f"{path}: format is {content['format']}, expected {FORMAT}")
    return typed(EvaluationResult, content, str(path))


def append_items(folder: Path, items: Sequence[ItemResult]) -> None:
    """Append lines to a folder's items.jsonl."""
    append_rows(folder / ITEMS_FILE, [asdict(item) for item in items])


def read_items(folder: Path) -> list[ItemResult]:
    """Read a folder's items.jsonl, as `read_appended` does."""
    return read_appended(ItemResult, folder / ITEMS_FILE)


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append one JSON object per line, after the last whole one."""
    lines = "".join(json.dumps(finite(row)) + "\n" for row in rows)
    with disk_errors(path), path.open("a+b") as file:
        file.seek(max(0, file.tell() - 1))
        if file.read() not in (b"", b"\n"):
            file.seek(0)
            file.truncate(_whole(file.read()))
        file.write(lines.encode())


def read_appended(kind: type[T], path: Path) -> list[T]:
    """Read a file's lines as a dataclass, if there is one, but not a line that was not finished.

    Raises ModelError for any other that is broken.
    """
    if not path.is_file():
        return []
    with disk_errors(path):
        content = path.read_bytes()
    lines = content[: _whole(content)].decode(errors="replace").split("\n")[:-1]
    named = [f"{path}, row {number}" for number in range(1, len(lines) + 1)]
    found = zip(named, lines, strict=True)
    return [typed(kind, parse_json(name, line), name) for name, line in found]


def _whole(content: bytes) -> int:
    """Return the bytes up to the end of the last whole line."""
    return content.rfind(b"\n") + 1


def typed(kind: type[T], content: Any, name: str) -> T:
    """Turn a JSON value into a dataclass, checking every type; raises ModelError naming the field.

    A null for a number that must be there is one that was not finite. Unknown fields are ignored.
    """
    made: T = _typed(kind, content, name)
    return made


@cache
def _expected(kind: Any) -> list[tuple[str, Any, tuple[Any, ...], bool]]:
    """Return each field's name, type, accepted classes, and whether it is required."""
    hints = get_type_hints(kind)
    plain = {
        name: get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        for name, hint in hints.items()
    }
    return [(f.name, hints[f.name], plain[f.name], f.default is MISSING) for f in fields(kind)]


def _typed(kind: Any, value: Any, name: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(value, Mapping):
        made: Any = kind
        known = _expected(made)
        missing = [field for field, *_, is_needed in known if is_needed and field not in value]
        if missing:
            raise ModelError(f"{name}: {missing[0]} is missing")
        return made(
            **{  # a report reads a hundred thousand items: most values need no call
                field: value[field]
                if type(value[field]) in plain
                else _typed(hint, value[field], f"{name}: {field}")
                for field, hint, plain, _ in known
                if field in value
            }
        )
    if origin is dict and isinstance(value, Mapping):
        return {key: _typed(arguments[1], item, f"{name}: {key}") for key, item in value.items()}
    if origin is list and isinstance(value, list):
        plain = arguments[0]
        return [item if type(item) is plain else _typed(plain, item, name) for item in value]
    if origin in (Union, types.UnionType):
        for each in arguments:
            if type(value) is each:
                return value
        return _typed(arguments[0], value, name)
    if kind is float and (value is None or type(value) in (int, float)):
        with suppress(OverflowError):  # a whole number may have any size
            return math.nan if value is None else float(value)
    if type(value) is kind:
        return value
    expected = getattr(kind, "__name__", str(kind))
    raise ModelError(f"{name} is {json.dumps(value)[:60]}, expected {expected}")
