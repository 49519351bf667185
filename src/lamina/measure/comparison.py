"""Compares two evaluations on the same items: difference, interval, test, retention."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lamina.errors import ModelError
from lamina.measure.statistics import Array, mcnemar, paired_intervals, sign_flips
from lamina.measure.tasks.files import (
    ITEMS_FILE,
    EvaluationResult,
    Flat,
    ItemResult,
    TaskResult,
    read_evaluation,
    read_items,
)
from lamina.weights.source import made_of

SIGNIFICANT = 0.05
"""Largest p-value of a difference that is more than noise."""

LOSS = "loss"

BEST, NEAR = "best", "within noise of the best"

FIELDS = {"acc": "correct", "acc_norm": "correct_norm", "exact_match": "correct", LOSS: "nll"}
"""Metrics that are compared, and the fields of an item; all but the loss are a mean over items."""

USED = (*dict.fromkeys(FIELDS.values()), "tokens")
"""The fields of an item that are read."""


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
    p: float
    """Of McNemar's exact test; of a loss, of the signs of the documents' differences."""
    retention: float | None
    """The second in percent of the first; of a loss, the probability of a token, exp(-loss)."""
    retention_low: float | None
    retention_high: float | None
    n: int
    """Items or documents."""
    is_within_noise: bool
    """Whether the interval holds 0, or the test finds no difference: intervals over few documents
    are too narrow."""


Comparisons = dict[str, dict[str, Comparison]]
"""By task and metric."""


@dataclass(frozen=True)
class Evaluated:
    """An evaluation and its items."""

    path: Path
    result: EvaluationResult
    items: dict[str, dict[str, Array]]
    """By task and field, in the order of the task's file; NaN where an item lacks the field. Empty
    if they are damaged."""


def load_evaluation(folder: Path, result: EvaluationResult | None = None) -> Evaluated:
    """Read a folder's evaluation.json, unless it is given, and items.jsonl.

    Raises ModelError if either is damaged, or items are missing.
    """
    result, path = result or read_evaluation(folder), folder / ITEMS_FILE
    items: dict[str, list[ItemResult]] = {name: [] for name in result.tasks}
    for item in sorted(read_items(folder), key=lambda item: item.id):
        items.get(item.task, []).append(item)
    for name, found in items.items():
        expected = result.tasks[name].items
        if len(found) != expected or len({item.id for item in found}) != expected:
            raise ModelError(f"{path}: {name} has {len(found)} items, expected {expected}")
    with made_of(path):
        return Evaluated(folder, result, {name: _columns(each) for name, each in items.items()})


def _columns(items: Sequence[ItemResult]) -> dict[str, Array]:
    return {field: np.array([getattr(item, field) for item in items], float) for field in USED}


def compare_all(pairs: Sequence[tuple[Evaluated, Evaluated]]) -> list[Comparisons]:
    """Compare pairs of evaluations, at the cost of one where they share their items.

    Their `incomparable` tasks are left out.
    """
    found: list[Comparisons] = [{} for _ in pairs]
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for number, (first, second) in enumerate(pairs):
        differing = incomparable(first, second)
        for name in filter(lambda name: name not in differing, _shared(first, second)):
            for metric in _metrics(name, first, second):
                groups[name, metric, first.result.tasks[name].items_hash].append(number)
    for (name, metric, _), numbers in groups.items():
        tasks = [[pairs[number][side].items[name] for number in numbers] for side in (0, 1)]
        before, after = (np.column_stack([each[FIELDS[metric]] for each in side]) for side in tasks)
        compared = compare_columns(before, after, tasks[0][0]["tokens"] if metric == LOSS else None)
        for number, comparison in zip(numbers, compared, strict=True):
            found[number].setdefault(name, {})[metric] = comparison
    return found


def incomparable(first: Evaluated, second: Evaluated) -> dict[str, str]:
    """Return how tasks of both differ that were not measured alike, on the same items."""
    found = {}
    for name in _shared(first, second):
        reason = _difference(first.result.tasks[name], second.result.tasks[name])
        before, after = (each.items[name]["tokens"] for each in (first, second))
        same = np.array_equal(before, after, equal_nan=True)
        if not reason and LOSS in first.result.tasks[name].metrics and not same:
            reason = "the items have other numbers of tokens"
        if reason:
            found[name] = reason
    return found


def _shared(first: Evaluated, second: Evaluated) -> list[str]:
    return [name for name in first.items if name in second.items]


def _difference(first: TaskResult, second: TaskResult) -> str:
    """Return how two results of a task were not measured alike; empty if they were."""
    keys = sorted(first.protocol.keys() | second.protocol.keys())
    values = [(key, first.protocol.get(key), second.protocol.get(key)) for key in keys]
    values += [(key, getattr(first, key), getattr(second, key)) for key in ("kind", "items")]
    differing = [f"{key} is {_shown(a)} and {_shown(b)}" for key, a, b in values if a != b]
    if not differing and first.items_hash != second.items_hash:
        hashes = f"{first.items_hash[:12]} and {second.items_hash[:12]}"
        return f"the items or their tokens differ ({hashes})"
    return ", ".join(differing)


def _shown(value: Flat) -> str:
    """Return a value as text; a blank one or a line break in quotes."""
    is_plain = not isinstance(value, str) or (value.strip() == value != "" and value.isprintable())
    return f"{value}" if is_plain else json.dumps(value)


def _metrics(name: str, *sides: Evaluated) -> Iterator[str]:
    """Yield the metrics of a task that all have, and that their items give."""
    for metric, field in FIELDS.items():
        used = (field, "tokens") if metric == LOSS else (field,)
        columns = [side.items[name][each] for side in sides for each in used]
        found = [side.result.tasks[name].metrics.get(metric) for side in sides]
        values = [each.value for each in found if each]
        is_whole = all(column.size and np.isfinite(column).all() for column in columns)
        if len(values) < len(sides) or not is_whole:
            continue
        if metric == LOSS:
            is_theirs = bool((columns[-1] > 0).any())
        else:  # lm-eval has others: of a group in which only some tasks have the metric
            is_theirs = np.allclose([column.mean() for column in columns], values)
        if is_theirs:
            yield metric


def influences(evaluated: Evaluated, name: str, metric: str) -> Array | None:
    """Return how far each item moves a task's metric; None if that is not known of each.

    The metric's variance over items is that of their mean.
    """
    if metric not in _metrics(name, evaluated):
        return None
    items = evaluated.items[name]
    values, tokens = items[FIELDS[metric]], items["tokens"]
    if metric != LOSS:
        return values - values.mean()
    values, tokens = values[tokens > 0], tokens[tokens > 0]
    moved: Array = (values - tokens * values.sum() / tokens.sum()) / tokens.mean()
    return moved


def standings(
    given: Mapping[int, Evaluated], differing: Callable[[int, str, str], None]
) -> dict[int, dict[tuple[str, str], str]]:
    """Return the tasks and metrics in which an evaluation is `BEST`, or `NEAR` the best one.

    It stands among those that were measured alike. `differing` gets the number of each that was not
    measured as most were, the task and the difference.
    """
    found: dict[int, dict[tuple[str, str], str]] = {number: {} for number in given}
    for name in dict.fromkeys(name for each in given.values() for name in each.items):
        known = {number: each for number, each in given.items() if name in each.items}
        groups = _alike({number: each.result.tasks[name] for number, each in known.items()})
        most = known[max(groups, key=len)[0]].result.tasks[name]
        for group in groups:
            if reason := _difference(most, known[group[0]].result.tasks[name]):
                for number in group:
                    differing(number, name, reason)
            for metric in FIELDS:
                for number, place in _places(name, metric, {n: known[n] for n in group}):
                    found[number][name, metric] = place
    return found


def _alike(tasks: Mapping[int, TaskResult]) -> list[list[int]]:
    """Return the numbers of results of a task in groups that were measured alike."""
    groups: list[list[int]] = []
    for number, task in tasks.items():
        same = [group for group in groups if not _difference(tasks[group[0]], task)]
        if same:
            same[0].append(number)
        else:
            groups.append([number])
    return groups


def _places(name: str, metric: str, alike: Mapping[int, Evaluated]) -> Iterator[tuple[int, str]]:
    """Yield which of two or more evaluations are `BEST` or `NEAR` in a metric."""
    figures = {
        number: each.result.tasks[name].metrics[metric].value
        for number, each in alike.items()
        if metric in _metrics(name, each)
        and math.isfinite(each.result.tasks[name].metrics[metric].value)
    }
    if len(figures) < 2:
        return
    best = (min if metric == LOSS else max)(figures, key=lambda number: figures[number])
    after = np.column_stack([alike[number].items[name][FIELDS[metric]] for number in figures])
    before = np.repeat(alike[best].items[name][FIELDS[metric]][:, None], len(figures), axis=1)
    tokens = alike[best].items[name]["tokens"] if metric == LOSS else None
    for number, each in zip(figures, compare_columns(before, after, tokens), strict=True):
        if each.is_within_noise:
            yield number, BEST if number == best else NEAR


def compare_columns(first: Array, second: Array, tokens: Array | None = None) -> list[Comparison]:
    """Compare pairs of columns, (items, pairs): whether answers are correct or, with `tokens`, nll.

    `tokens` are those of each item.
    """
    if tokens is not None:  # a document of one token has no loss
        first, second, tokens = (values[tokens > 0] for values in (first, second, tokens))
    weights = np.ones(len(first)) if tokens is None else tokens
    means = [values.sum(axis=0) / weights.sum() for values in (first, second)]
    bounds = paired_intervals(first, second, weights)
    p = (mcnemar(first, second) if tokens is None else sign_flips(second - first)).tolist()
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
                is_within_noise=low <= 0 <= high or p[pair] >= SIGNIFICANT,
            )
        )
    return made
