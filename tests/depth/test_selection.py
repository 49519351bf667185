"""Every selector follows its definition, on scores written by hand."""

from dataclasses import replace
from typing import Any

import pytest

from lamina.depth import selection
from lamina.depth.selection import LayerScores, NoScores, Selector
from lamina.depth.statistics import LeaveOneOut, Statistics
from lamina.depth.variants import Dropped, Pruned
from lamina.errors import ConfigError

DISTANCE = (
    (0.0, 0.9, 0.8, 0.7, 0.6, 0.5),
    (0.0, 0.2, 0.9, 0.3, 0.4),
    (0.0, 0.3, 0.1, 0.9),
    (0.0, 0.4, 0.5),
    (0.0, 0.1),
)

FOUND = Statistics(
    num_layers=5,
    num_tokens=100,
    num_windows=10,
    baseline_loss=1.0,
    baseline_stderr=0.1,
    leave_one_out=LeaveOneOut(
        loss=(9.0, 1.2, 1.1, 1.2, 3.0),
        stderr=(0.1,) * 5,
        delta_stderr=(0.1,) * 5,
        kl=(8.0, 0.3, 0.2, 0.1, 2.0),
    ),
    block_influence=(0.9, 0.1, 0.3, 0.2, 0.05),
    magnitude=(0.5, 0.4, 0.3, 0.2, 0.9),
    angular_distance=DISTANCE,
    angular_distance_last=tuple(tuple(1 - x for x in row) for row in DISTANCE),
)


class Scores(LayerScores):
    """Scores written by hand."""

    def __init__(self, found: Statistics = FOUND) -> None:
        self.found = found

    def statistics(self) -> Statistics:
        return self.found

    def greedy(self, count: int, protected: frozenset[int] = frozenset()) -> tuple[int, ...]:
        return tuple(index for index in (2, 4, 1, 3, 0) if index not in protected)[:count]

    def taylor(self) -> tuple[float, ...]:
        return (5.0, 1.0, 4.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("selector", "keep", "kept"),
    [
        (selection.First(), 3, (0, 1, 2)),
        (selection.Last(), 3, (2, 3, 4)),
        (selection.Uniform(), 1, (0,)),
        (selection.Uniform(), 2, (0, 4)),
        (selection.Uniform(), 3, (0, 2, 4)),
        (selection.Uniform(), 4, (0, 1, 3, 4)),
        (selection.Magnitude(), 3, (0, 1, 4)),
        (selection.BlockInfluence(), 3, (0, 2, 3)),
        (selection.LeaveOneOut(), 4, (0, 1, 3, 4)),
        (selection.LeaveOneOut(), 3, (0, 3, 4)),
        (selection.LeaveOneOutKL(), 3, (0, 1, 4)),
        (selection.Angular(token="mean"), 4, (0, 1, 2, 3)),
        (selection.Angular(token="mean"), 3, (0, 1, 4)),
        (selection.Angular(token="last"), 4, (1, 2, 3, 4)),
        (selection.Greedy(), 3, (0, 1, 3)),
        (selection.Taylor(), 2, (0, 2)),
    ],
)
def test_each_selector_keeps_its_layers(
    selector: Selector, keep: int, kept: tuple[int, ...]
) -> None:
    assert selector.kept(5, keep, Scores()) == kept
    assert Pruned(keep_layers=keep, selector=selector).kept_layers(5, Scores()) == kept


@pytest.mark.parametrize("keep", range(1, 12))
@pytest.mark.parametrize(
    "selector",
    [selection.First(), selection.Last(), selection.Uniform(), selection.Random(seed=3)],
)
def test_a_choice_by_position_keeps_the_given_number_and_reads_no_scores(
    selector: Selector, keep: int
) -> None:
    scores: LayerScores = NoScores()
    kept = selector.kept(12, keep, scores)
    assert len(kept) == len(set(kept)) == keep
    assert list(kept) == sorted(kept)
    assert set(kept) <= set(range(12))


def test_a_random_choice_depends_on_its_seed_alone() -> None:
    draws = {selection.Random(seed=seed).kept(36, 18, NoScores()) for seed in range(5)}
    assert len(draws) == 5
    assert selection.Random(seed=1).kept(36, 18, NoScores()) in draws


def test_the_cheapest_layer_is_dropped_automatically() -> None:
    assert Dropped(layer_to_drop="auto").kept_layers(5, Scores()) == (0, 1, 3, 4)


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_layer_without_a_score_is_refused(value: Any) -> None:
    losses = replace(FOUND.leave_one_out, loss=(9.0, value, 1.1, 1.2, 3.0))
    with pytest.raises(ConfigError, match="layer 1 has no score"):
        selection.LeaveOneOut().kept(5, 3, Scores(replace(FOUND, leave_one_out=losses)))
