"""Compares two evaluations on the same items: difference, interval, test, retention."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lamina.errors import ConfigError, ModelError
from lamina.measure.statistics import Array, mcnemar, paired_intervals
from lamina.measure.tasks.files import (
    ITEMS_FILE,
    EvaluationResult,
    ItemResult,
    TaskResult,
    read_evaluation,
    read_items,
)

SIGNIFICANT = 0.05
"""Largest p-value of a difference that is more than noise."""

CORRECT = {"acc": "correct", "acc_norm": "correct_norm", "exact_match": "correct"}
"""Metrics that are a mean over items, and the items' fields."""

LOSS = "loss"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One metric of a second model beside that of a first, on the same items.

    Intervals have 95 % confidence. They are bootstrap intervals over items, of a loss over
    documents.
    """

    first: float
    second: float
    difference: float
    """The second minus the first."""
    low: float
    high: float
    p: float | None
    """Of McNemar's exact test; None for a loss."""
    retention: float | None
    """The second in percent of the first; of a loss, the probability of a token, exp(-loss)."""
    retention_low: float | None
    retention_high: float | None
    n: int
    """Items or documents."""
    is_within_noise: bool
    """Whether the interval holds 0, or the test finds no difference."""


Comparisons = dict[str, dict[str, Comparison]]
"""By task and metric."""


@dataclass(frozen=True)
class Evaluation:
    """An evaluation and its items, by task, in the order of their rows."""

    path: Path
    result: EvaluationResult
    items: dict[str, list[ItemResult]]


def load_evaluation(folder: Path) -> Evaluation:
    """Read a folder's evaluation.json and items.jsonl; raises ModelError if either is damaged."""
    result = read_evaluation(folder)
    items = defaultdict(list)
    for item in read_items(folder):
        items[item.task].append(item)
    for name, task in result.tasks.items():
        found = sorted(items[name], key=lambda item: item.id)
        items[name] = found
        if len({item.id for item in found}) != task.items or len(found) != task.items:
            path = folder / ITEMS_FILE
            raise ModelError(f"{path}: {name} has {len(found)} items, expected {task.items}")
    return Evaluation(folder, result, dict(items))


def compare(first: Evaluation, second: Evaluation) -> Comparisons:
    """Compare two evaluations in every task that both have.

    Raises ConfigError if a task's protocol or items differ, naming the difference.
    """
    return compare_all([(first, second)])[0]


def compare_all(pairs: Sequence[tuple[Evaluation, Evaluation]]) -> list[Comparisons]:
    """Compare pairs of evaluations, at the cost of one where they share their items."""
    found: list[Comparisons] = [{} for _ in pairs]
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for number, (first, second) in enumerate(pairs):
        for name, task in first.result.tasks.items():
            if (other := second.result.tasks.get(name)) is None:
                continue
            refuse_incomparable(name, task, other)
            for metric in _metrics(task, other):
                groups[name, metric, task.items_hash].append(number)
    for (name, metric, _), numbers in groups.items():
        sides = [[pairs[number][side].items[name] for number in numbers] for side in (0, 1)]
        for number, comparison in zip(numbers, _compared(metric, *sides), strict=True):
            found[number].setdefault(name, {})[metric] = comparison
    return found


def refuse_incomparable(name: str, first: TaskResult, second: TaskResult) -> None:
    """Raise ConfigError if two results of a task were not measured in the same way."""
    keys = sorted(first.protocol.keys() | second.protocol.keys())
    values = [(key, first.protocol.get(key), second.protocol.get(key)) for key in keys]
    values += [(key, getattr(first, key), getattr(second, key)) for key in ("kind", "items")]
    if differing := [f"{key} is {a} and {b}" for key, a, b in values if a != b]:
        raise ConfigError(f"{name}: not comparable: {', '.join(differing)}")
    if first.items_hash != second.items_hash:
        hashes = f"{first.items_hash[:12]} and {second.items_hash[:12]}"
        raise ConfigError(f"{name}: not comparable: the items or their tokens differ ({hashes})")


def _metrics(*tasks: TaskResult) -> Iterator[str]:
    """Yield the metrics that both have and that items tell of."""
    for name in (*CORRECT, LOSS):
        if all(name in task.metrics for task in tasks):
            yield name


def _compared(
    metric: str, first: Iterable[Sequence[ItemResult]], second: Iterable[Sequence[ItemResult]]
) -> list[Comparison]:
    """Compare pairs of the same items in one metric."""
    field = CORRECT.get(metric, "nll")
    before, after = (_column(items, field) for items in (first, second))
    if metric in CORRECT:
        return compare_columns(before, after)
    tokens = np.column_stack([_column(items, "tokens") for items in (first, second)])
    if (tokens != tokens[:, :1]).any():
        raise ModelError(f"{ITEMS_FILE}: the same items have other numbers of tokens")
    return compare_columns(before, after, tokens[:, 0])


def _column(given: Iterable[Sequence[ItemResult]], field: str) -> Array:
    """Return a field of the items as (items, pairs); raises ModelError if one lacks it."""
    columns = [[getattr(item, field) for item in items] for items in given]
    if any(value is None for column in columns for value in column):
        raise ModelError(f"{ITEMS_FILE}: an item lacks {field}")
    return np.array(columns, dtype=np.float64).T


def compare_columns(first: Array, second: Array, tokens: Array | None = None) -> list[Comparison]:
    """Compare pairs of columns, (items, pairs): whether answers are correct or, with `tokens`, nll.

    `tokens` are those of each item, the same for all pairs.
    """
    weights = np.ones(len(first)) if tokens is None else tokens
    means = [values.sum(axis=0) / weights.sum() for values in (first, second)]
    bounds = paired_intervals(first, second, weights)
    p = mcnemar(first, second).tolist() if tokens is None else [None] * len(means[0])
    made = []
    for pair, (before, after) in enumerate(zip(*(side.tolist() for side in means), strict=True)):
        low, high = float(bounds.low[pair]), float(bounds.high[pair])
        if tokens is None:
            given = (bounds.ratio_low[pair], after / before if before else math.nan)
            ratios = [*given, bounds.ratio_high[pair]]
        else:
            with np.errstate(over="ignore"):
                ratios = [np.exp(-each) for each in (high, after - before, low)]
        percents = [100 * float(each) if math.isfinite(each) else None for each in ratios]
        made.append(
            Comparison(
                first=before,
                second=after,
                difference=after - before,
                low=low,
                high=high,
                p=p[pair],
                retention_low=percents[0],
                retention=percents[1],
                retention_high=percents[2],
                n=len(first),
                is_within_noise=low <= 0 <= high or (p[pair] or 0) >= SIGNIFICANT,
            )
        )
    return made
