"""What a report adds to the figures of runs: tasks, comparisons, noise and the spread of seeds."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from lamina.errors import ConfigError, LaminaError
from lamina.measure.comparison import (
    BEST,
    LOSS,
    NEAR,
    Evaluated,
    compare_all,
    compare_columns,
    incomparable,
    influences,
    standings,
)
from lamina.measure.results import ROWS_FILE, read_rows, trained_tokens
from lamina.measure.statistics import Array, half_width, variance_of_mean
from lamina.measure.tasks.figures import ratio_metric
from lamina.measure.tasks.files import (
    EVALUATION_FILE,
    FINAL,
    ORIGINAL,
    EvaluationResult,
    TaskResult,
)
from lamina.measure.tasks.items import ROWS
from lamina.report.runs import COSTS, HEALED, SEED, RunRow, clean, is_lower_better, without_seed
from lamina.weights.source import made_of

FIGURES = ("first", "second", "difference", "low", "high")
"""Of a comparison; without one of them, it says nothing."""

Listing = Callable[[Path, LaminaError], None]
"""Lists a file that cannot be used, and why."""


def with_tasks(row: RunRow, found: Mapping[str, Evaluated]) -> RunRow:
    """Add a run's evaluations, by role."""
    tasks: dict[str, Any] = defaultdict(lambda: defaultdict(dict))
    for role, evaluated in found.items():
        for name, task in evaluated.result.tasks.items():
            for metric, figure in _figures(task).items():
                tasks[name][metric][role] = figure
    speed = {
        role: [asdict(each) for each in evaluated.result.speed]
        for role, evaluated in found.items()
        if evaluated.result.speed
    }
    final = found.get(FINAL)
    return replace(
        row,
        tasks=clean(tasks),
        speed=clean(speed),
        bytes=clean(final.result.model.bytes) if final else row.bytes,
    )


def with_decoding(
    rows: Sequence[RunRow], found: Sequence[Mapping[str, Evaluated]], listing: Listing
) -> Iterator[RunRow]:
    """Add how fast the final models write, on the device and at the size that most share.

    Rates of others do not compare.
    """
    rates = [
        _rates(evaluations[FINAL].result) if FINAL in evaluations else {} for evaluations in found
    ]
    counts = Counter(size for each in rates for size in each)
    shared = max(counts, key=counts.__getitem__, default="")
    for row, evaluations, each in zip(rows, found, rates, strict=True):
        if each and shared not in each:
            reason = f"speed: not comparable with others, of {shared}: {'; '.join(each)}"
            listing(evaluations[FINAL].path / EVALUATION_FILE, ConfigError(reason))
        yield replace(row, decode_tokens_per_second=clean(each.get(shared)))


def _rates(result: EvaluationResult) -> dict[str, float]:
    """Return the tokens written per second, by size and device."""
    return {
        f"batch {each.batch}, {each.prompt_tokens} + {each.new_tokens} tokens, {result.device}": (
            each.decode_tokens_per_second
        )
        for each in result.speed or ()
    }


def _figures(task: TaskResult) -> dict[str, dict[str, Any]]:
    """Return all that a task measured, by name: value, stderr, n, chance."""
    found = {name: asdict(metric) for name, metric in task.metrics.items()}
    found |= asdict(task.agreement) if task.agreement else {}
    for name, share in (asdict(task.health) if task.health else {}).items():
        found[name] = {"value": share, "stderr": None, "n": task.items, "chance": None}
    return found


def with_comparisons(
    rows: Sequence[RunRow], found: Sequence[Mapping[str, Evaluated]], listing: Listing
) -> Iterator[RunRow]:
    """Compare each run's final model with the original."""
    pairs = {}
    for number, evaluations in enumerate(found):
        if {ORIGINAL, FINAL} <= evaluations.keys():
            pairs[number] = pair = evaluations[ORIGINAL], evaluations[FINAL]
            for name, reason in incomparable(*pair).items():
                error = ConfigError(f"{name}: not comparable: {reason}")
                listing(pair[1].path / EVALUATION_FILE, error)
    compared = dict(zip(pairs, compare_all([*pairs.values()]), strict=True))
    for number, row in enumerate(rows):
        comparisons: dict[str, dict[str, Any]] = defaultdict(dict)
        for name, metrics in compared.get(number, {}).items():
            for metric, comparison in metrics.items():
                fields = clean(asdict(comparison))
                if None not in [fields[key] for key in FIGURES]:
                    comparisons[clean(name)][metric] = fields
        yield replace(row, comparisons=dict(comparisons))


def with_standings(
    rows: Sequence[RunRow], found: Sequence[Mapping[str, Evaluated]], listing: Listing
) -> Iterator[RunRow]:
    """Compare the final models with the best one of each task and metric measured alike."""
    measured = {
        number: each[FINAL]
        for number, each in enumerate(found)
        if FINAL in each and rows[number].is_complete
    }
    apart: dict[tuple[str, str], dict[int, None]] = defaultdict(dict)
    standing = standings(measured, lambda n, name, reason: apart[name, reason].setdefault(n))
    for (name, reason), (number, *others) in apart.items():
        if name != ROWS:  # the report says so of the losses
            more = f" (and {len(others)} more)" if others else ""
            error = ConfigError(f"{name}: not comparable with others: {reason}{more}")
            listing(measured[number].path / EVALUATION_FILE, error)
    for number, row in enumerate(rows):
        by_task: dict[str, dict[str, str]] = defaultdict(dict)
        for (name, metric), place in standing.get(number, {}).items():
            by_task[clean(name)][metric] = place
        yield replace(row, standings=dict(by_task))


def with_noise(
    rows: Sequence[RunRow], folders: Sequence[Path], listing: Listing
) -> Iterator[RunRow]:
    """Compare the healed loss of each completed run with the best one's, on the same rows."""
    best = next((number for number, row in enumerate(rows) if row.is_best), None)
    losses: dict[int, Array] = {}
    tokens: Array | None = None
    for number, row in enumerate(rows):
        same = best is not None and row.eval_fingerprint == rows[best].eval_fingerprint
        if row.rank is None or not same or row.eval_fingerprint is None:
            continue
        path = folders[number] / ROWS_FILE
        try:
            with made_of(path):
                if number == best:
                    tokens = np.array([*map(trained_tokens, read_rows(path))])
                losses[number] = _row_losses(path)
        except LaminaError as error:
            listing(path, error)
    if best not in losses or tokens is None or not len(tokens):
        return iter(rows)
    size = len(tokens)
    usable = [number for number, column in losses.items() if len(column) == size]
    columns = np.column_stack([losses[number] * tokens for number in usable])
    first = np.repeat(columns[:, [usable.index(best)]], len(usable), axis=1)
    compared = compare_columns(first, columns, tokens)
    added: dict[int, dict[str, Any]] = {
        number: {
            "within_noise_of_best": comparison.is_within_noise,
            "healed_stderr": ratio_metric(column.tolist(), tokens.tolist()).stderr,
        }
        for number, comparison, column in zip(usable, compared, columns.T, strict=True)
    }
    return (replace(row, **added.get(number, {})) for number, row in enumerate(rows))


def _row_losses(path: Path) -> Array:
    """Return the losses in eval.jsonl; of a row, which may be long, only the end is parsed."""
    if not path.is_file():
        return np.array([])
    ends = [line[line.rfind(b'"loss"') :] for line in path.read_bytes().splitlines()]
    # With evaluation.reload=false, no row has one.
    losses = [json.loads(b"{" + end).get("loss") for end in ends]
    return np.array([loss for loss in losses if loss is not None], float)


@dataclass(frozen=True)
class _Repeated:
    """A figure of the runs of one setting, which differ in their seed alone."""

    name: str
    values: Sequence[float]
    influences: Array
    """Of each item on their mean; empty where that is not known."""
    measured: frozenset[object]
    """How, and on which items; means compare if it is equal."""

    def noise(self, *other: "_Repeated") -> float:
        """Return half of the interval of their mean, or of its difference from another's."""
        variances = [variance_of_mean(each.values) for each in (self, *other)]
        columns = [each.influences for each in (self, *other)]
        if len({len(column) for column in columns}) == 1 and len(columns[0]) > 1:
            variances.append(variance_of_mean(np.subtract.reduce(columns)))
        return half_width(variances)


def with_spread(
    rows: Sequence[RunRow], found: Sequence[Mapping[str, Evaluated]]
) -> Iterator[RunRow]:
    """Add what the runs of a sweep that differ only in their seed have together.

    The noise of a mean is that of its seeds and, in a task, that of its items.
    """
    settings: dict[Any, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        if row.is_complete and row.sweep and any(own.startswith(SEED) for own in row.own):
            settings[_setting(row)].append(number)
    figures: dict[Any, dict[Any, _Repeated]] = defaultdict(dict)
    for setting, numbers in settings.items():
        for each in _repeated([(rows[number], found[number]) for number in numbers]):
            figures[rows[numbers[0]].sweep, each.name, each.measured][setting] = each
    spread: dict[Any, dict[str, Any]] = defaultdict(dict)
    for (_, name, _), repeated in figures.items():
        task, _, metric = name.rpartition("/")
        choose = min if is_lower_better(rows, task, metric) else max
        best = choose(repeated.values(), key=lambda each: fmean(each.values))
        for setting, each in repeated.items():
            spread[setting][name] = {
                "runs": len(each.values),
                "mean": fmean(each.values),
                "spread": stdev(each.values),
                "half_width": each.noise(),
                "standing": _standing(each, best) if len(repeated) > 1 else None,
            }
    for row in rows:
        yield replace(row, seed_spread=spread[_setting(row)] if row.is_complete else {})


def _setting(row: RunRow) -> Any:
    return row.sweep, *without_seed(row.own)


def _repeated(runs: Sequence[tuple[RunRow, Mapping[str, Evaluated]]]) -> Iterator[_Repeated]:
    """Yield the figures that several runs of a setting have."""
    known = [_final_figures(row, found) for row, found in runs]
    for name in dict.fromkeys(name for each in known for name in each):
        given = [each[name] for each in known if name in each]
        if len(given) < 2:
            continue
        values, columns, measured = zip(*given, strict=True)
        same = len({*measured}) == 1 and not any(column is None for column in columns)
        influences = np.mean(columns, axis=0) if same else np.array([])
        yield _Repeated(name, values, influences, frozenset(measured))


def _standing(each: _Repeated, best: _Repeated) -> str | None:
    if each is best:
        return BEST
    difference = abs(fmean(each.values) - fmean(best.values))
    return NEAR if difference <= each.noise(best) else None


def _final_figures(
    row: RunRow, found: Mapping[str, Evaluated]
) -> dict[str, tuple[float, Array | None, object]]:
    """Return a run's costs, and the final model's figures, as `_Repeated` has them."""
    final = found.get(FINAL)
    moved = influences(final, ROWS, LOSS) if final and ROWS in final.items else None
    given: dict[str, Any] = {HEALED: (row.healed_loss, moved, row.eval_fingerprint)}
    for name, task in final.result.tasks.items() if final else ():
        measured = task.items_hash, json.dumps(task.protocol, sort_keys=True)
        for metric, value in clean(task.figures).items():
            moved = influences(final, name, metric) if final and name in final.items else None
            given[f"{clean(name)}/{metric}"] = value, moved, measured
    given |= {name: (getattr(row, name), None, "") for name in COSTS}
    return {name: figure for name, figure in given.items() if figure[0] is not None}
