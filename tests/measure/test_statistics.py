"""Intervals hold the truth as often as they say; tests and intervals by hand and by scipy."""

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap, permutation_test, t, ttest_ind

from lamina.measure.statistics import (
    Array,
    half_width,
    mcnemar,
    paired_intervals,
    sign_flips,
    variance_of_mean,
)

ITEMS, DRAWS = 200, 2_000


def ratios(first: Array, second: Array, tokens: Array, axis: int = -1) -> Array:
    return second.sum(axis) / tokens.sum(axis) - first.sum(axis) / tokens.sum(axis)


def test_intervals_by_hand() -> None:
    """Of two items that differ by 0 and 1, resamples differ by 0 (1/4), 1/2 and 1 (1/4)."""
    first, second = np.array([[1.0, 1.0], [1.0, 1.0]]), np.array([[1.0, 2.0], [2.0, 2.0]])
    found = paired_intervals(first, second, np.ones(2))
    assert found.low.tolist() == [0.0, 1.0]
    assert found.high.tolist() == [1.0, 1.0]
    assert found.ratio_low.tolist() == [1.0, 2.0]
    assert found.ratio_high.tolist() == [2.0, 2.0]


def test_one_item_has_no_width_and_a_ratio_to_nothing_has_no_value() -> None:
    found = paired_intervals(np.array([[0.0]]), np.array([[1.0]]), np.array([4.0]))
    assert (found.low[0], found.high[0]) == (0.25, 0.25)
    assert not np.isfinite([found.ratio_low[0], found.ratio_high[0]]).any()


@pytest.mark.parametrize("method", ["percentile", "BCa"])
def test_intervals_are_those_of_scipy(method: str) -> None:
    generator = np.random.default_rng(5)
    tokens = np.round(generator.lognormal(4, 0.5, ITEMS))
    first = generator.normal(2, 1, ITEMS) * tokens
    second = first + generator.normal(0.1, 0.3, ITEMS) * tokens
    expected = bootstrap(
        (first, second, tokens),
        ratios,
        paired=True,
        vectorized=True,
        method=method,
        rng=generator,
        batch=1000,
    ).confidence_interval
    found = paired_intervals(first[:, None], second[:, None], tokens)
    width = expected.high - expected.low
    assert found.low[0] == pytest.approx(expected.low, abs=width / 25)
    assert found.high[0] == pytest.approx(expected.high, abs=width / 25)


def accuracies(generator: np.random.Generator) -> tuple[Array, Array, Array, float]:
    """Answers of two models, of which 15 % are lost and 10 % won."""
    drawn = generator.random((ITEMS, DRAWS))
    first = (drawn < 0.6).astype(float)
    second = ((drawn < 0.45) | (drawn > 0.9)).astype(float)
    return first, second, np.ones(ITEMS), -0.05


def losses(generator: np.random.Generator) -> tuple[Array, Array, Array, float]:
    """Losses of documents of varied lengths, which rise by .4 nats per token on average."""
    tokens = np.round(generator.lognormal(4, 0.5, ITEMS))
    first = generator.normal(2, 1, (ITEMS, DRAWS))
    rise = generator.normal(0.1, 0.1, first.shape) + 0.3 * generator.exponential(1, first.shape)
    return first * tokens[:, None], (first + rise) * tokens[:, None], tokens, 0.4


@pytest.mark.parametrize("kind", [accuracies, losses])
def test_intervals_cover_the_truth(kind: object) -> None:
    first, second, weights, truth = kind(np.random.default_rng(2))
    found = paired_intervals(first, second, weights)
    covered = np.mean((found.low <= truth) & (truth <= found.high))
    assert 0.93 <= covered <= 0.97, covered


MCNEMAR = {(0, 0): 1.0, (5, 0): 0.0625, (6, 0): 0.03125, (2, 10): 2 * 79 / 4096, (7, 7): 1.0}
"""Items that only the first, or only the second answers correctly, and the p-value."""


def test_mcnemar_by_hand_and_by_scipy() -> None:
    sides = [np.zeros((50, len(MCNEMAR))), np.zeros((50, len(MCNEMAR)))]
    for pair, (lost, won) in enumerate(MCNEMAR):
        sides[0][:lost, pair] = 1
        sides[1][lost : lost + won, pair] = 1
        for side in sides:
            side[30:40, pair] = 1
    found = mcnemar(*sides)
    assert found.tolist() == pytest.approx([*MCNEMAR.values()], abs=1e-12)
    by_scipy = [binomtest(lost, lost + won).pvalue for lost, won in MCNEMAR if lost + won]
    assert found[1:].tolist() == pytest.approx(by_scipy, abs=1e-12)


def test_sign_flips_by_hand_and_by_scipy() -> None:
    """1 - 2 + 4 is 3, and six of the eight sums are as far from 0; of 1 + 2 + 4, two."""
    assert sign_flips(np.array([[1.0, 1.0], [-2.0, 2.0], [4.0, 4.0]])).tolist() == [0.75, 0.25]
    for items in (13, 14):  # all signs, and random ones
        drawn = np.random.default_rng(1).normal(0.4, 1, (items, 1))
        by_scipy = permutation_test(
            (drawn[:, 0],), np.sum, permutation_type="samples", n_resamples=2**items
        )
        p = sign_flips(drawn)[0]
        assert p == pytest.approx(by_scipy.pvalue, abs=1e-12 if items == 13 else 0.015)


def test_the_interval_of_a_sum_of_variances() -> None:
    first, second = [2.0, 2.2, 2.4], [2.5, 2.6, 3.1, 2.9]
    parts = [variance_of_mean(values) for values in (first, second)]
    assert half_width(parts[:1]) == pytest.approx(t(2).ppf(0.975) * 0.2 / 3**0.5)
    welch = ttest_ind(second, first, equal_var=False).confidence_interval()
    assert half_width(parts) == pytest.approx((welch.high - welch.low) / 2)
    assert half_width([(0.0, 2), (0.0, 99)]) == 0.0
    assert half_width([(0.0, 2), parts[1]]) == pytest.approx(half_width(parts[1:]))


def test_intervals_of_repeated_runs_hold_the_truth() -> None:
    """Three runs on 100 items: the mean varies with the runs, with the items, and with both."""
    generator = np.random.default_rng(7)
    runs, items = generator.normal(0, 0.1, (DRAWS, 3, 1)), generator.normal(0, 1, (DRAWS, 1, 100))
    values = runs + items + generator.normal(0, 0.5, (DRAWS, 3, 100))
    held = [
        abs(each.mean())
        <= half_width([variance_of_mean(each.mean(1)), variance_of_mean(each.mean(0))])
        for each in values
    ]
    assert 0.94 <= np.mean(held) <= 0.99
