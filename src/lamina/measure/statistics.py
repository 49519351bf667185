"""How sure a difference is: paired bootstrap intervals, exact tests, repeated runs.

scipy.stats.bootstrap resamples separately for each pair: seconds for one, minutes for a sweep's
report. Here all pairs on the same items share their resamples, in two matrix products.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

CONFIDENCE = 0.95
RESAMPLES = 9_999
SEED = 20261127
CELLS = 2**22
"""Most numbers in a matrix of resamples: 32 MB."""


@dataclass(frozen=True)
class Intervals:
    """Intervals of `CONFIDENCE`, one entry per pair; NaN where a resample has no value."""

    low: Array
    """Of the second figure minus the first."""
    high: Array
    ratio_low: Array
    """Of the second figure divided by the first."""
    ratio_high: Array


def paired_intervals(first: Array, second: Array, weights: Array) -> Intervals:
    """Return percentile bootstrap intervals of pairs of figures on the same items.

    A figure is the sum of an item's values, of shape (items, pairs), divided by the sum of its
    weights, of shape (items,): tokens for a loss, ones for a mean. Whole items are drawn, with
    replacement. The same call returns the same intervals.
    """
    items = len(weights)
    columns = np.column_stack([second - first, first, weights])
    generator = np.random.default_rng(SEED)
    parts = [_counts(generator, rows, items) @ columns for rows in _blocks(items)]
    sums, pairs = np.concatenate(parts), first.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        differences = sums[:, :pairs] / sums[:, -1:]
        ratios = 1 + sums[:, :pairs] / sums[:, pairs : 2 * pairs]
    return Intervals(*_bounds(differences), *_bounds(ratios))


def _blocks(items: int) -> Iterator[int]:
    """Yield numbers of resamples, `RESAMPLES` in all, whose matrices fit into memory."""
    rows = max(1, CELLS // max(items, 1))
    for start in range(0, RESAMPLES, rows):
        yield min(rows, RESAMPLES - start)


def _counts(generator: np.random.Generator, resamples: int, items: int) -> Array:
    """Return how often each resample holds each item: (resamples, items)."""
    drawn = generator.integers(items, size=(resamples, items))
    drawn += items * np.arange(resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=resamples * items)
    return counts.reshape(resamples, items).astype(np.float64)


def _bounds(figures: Array) -> tuple[Array, Array]:
    tail = (1 - CONFIDENCE) / 2
    with np.errstate(invalid="ignore"):  # infinite ratios
        low, high = np.quantile(figures, [tail, 1 - tail], axis=0)
    return low, high


def mcnemar(first: Array, second: Array) -> Array:
    """Return the p-value of McNemar's exact test for each pair; values are 0 or 1, (items, pairs).

    Only items that one of the two answers correctly count; without any, it is 1.
    """
    from scipy.special import bdtr  # the binomial distribution; scipy.stats takes seconds to import

    lost, won = (first > second).sum(axis=0), (second > first).sum(axis=0)
    p: Array = np.minimum(1.0, 2 * bdtr(np.minimum(lost, won), lost + won, 0.5))
    return p


def sign_flips(differences: Array) -> Array:
    """Return the p-value of each column's sum if each item could as well have the other sign.

    Few items get all signs: the test is exact, as McNemar's, which it is for 1, 0 and -1. Others
    get `RESAMPLES` random ones, the same in each call.
    """
    items = len(differences)
    least = np.abs(differences.sum(axis=0)) * (1 - 1e-9)  # the order of summands changes rounding
    if 2**items <= RESAMPLES:
        signs = np.array([*product((-1.0, 1.0), repeat=items)])
        exact: Array = (np.abs(signs @ differences) >= least).mean(axis=0)
        return exact
    generator, reached = np.random.default_rng(SEED), np.ones(len(least))
    for rows in _blocks(items):
        signs = 1.0 - 2 * generator.integers(2, size=(rows, items))
        reached += (np.abs(signs @ differences) >= least).sum(axis=0)
    return reached / (RESAMPLES + 1)


def variance_of_mean(values: Sequence[float] | Array) -> tuple[float, int]:
    """Return the variance of the mean of values, and its degrees of freedom."""
    return float(np.var(values, ddof=1)) / len(values), len(values) - 1


def half_width(variances: Sequence[tuple[float, int]]) -> float:
    """Return half of the interval of a figure to which independent sources add their variances.

    Each comes with its degrees of freedom; those of the sum are Welch's.
    """
    from scipy.special import stdtrit

    if not (total := math.fsum(variance for variance, _ in variances)):
        return 0.0
    freedom = total**2 / math.fsum(variance**2 / number for variance, number in variances)
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(total)
