"""Selectors: which layers of a model stay, given only how many.

Ties go to the earlier layer, so a choice depends on nothing but the scores.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Annotated, Protocol

from typing_extensions import override

from lamina.depth.statistics import Statistics
from lamina.errors import ConfigError
from lamina.limits import one_of


class ScoresNeededError(Exception):
    """A choice needs scores where none are available."""


class NoScoreError(ConfigError):
    """A layer, by its 0-based index, cannot be ranked."""

    def __init__(self, layer: int) -> None:
        super().__init__(f"layer {layer} has no score (its loss is not finite): set dtype=float32")
        self.layer = layer


class LayerScores:
    """Scores of a model's layers, computed on first use."""

    def statistics(self) -> Statistics:
        """Return the results of one pass over the weights."""
        raise ScoresNeededError

    def greedy(self, count: int, protected: frozenset[int] = frozenset()) -> tuple[int, ...]:
        """Return `count` 0-based layers in order of removal, each the cheapest of those left.

        Those in `protected` stay.
        """
        raise ScoresNeededError

    def taylor(self) -> tuple[float, ...]:
        """Return each layer's first-order importance."""
        raise ScoresNeededError


class NoScores(LayerScores):
    """Stands in for scores where only choices by position are allowed."""


class Selector(Protocol):
    """A way to choose layers."""

    def kept(self, num_layers: int, keep_layers: int, scores: LayerScores) -> tuple[int, ...]:
        """Return the 0-based indices that stay, ascending: from 1 to num_layers - 1 of them."""
        ...


@dataclass(frozen=True, kw_only=True)
class First(Selector):
    """Keeps the first layers."""

    @override
    def kept(self, num_layers: int, keep_layers: int, scores: LayerScores) -> tuple[int, ...]:
        return tuple(range(keep_layers))


@dataclass(frozen=True, kw_only=True)
class Last(Selector):
    """Keeps the last layers."""

    @override
    def kept(self, num_layers: int, keep_layers: int, scores: LayerScores) -> tuple[int, ...]:
        return tuple(range(num_layers - keep_layers, num_layers))


@dataclass(frozen=True, kw_only=True)
class Uniform(Selector):
    """Keeps evenly spaced layers, including the first and, if two or more stay, the last.

    As DistilBERT was initialised from BERT (Sanh et al. 2019, arXiv:1910.01108).
    """

    @override
    def kept(self, num_layers: int, keep_layers: int, scores: LayerScores) -> tuple[int, ...]:
        gaps = max(1, keep_layers - 1)
        return tuple((index * (num_layers - 1) + gaps // 2) // gaps for index in range(keep_layers))


@dataclass(frozen=True, kw_only=True)
class Random(Selector):
    """Keeps random layers: the baseline that any other choice has to beat."""

    seed: int
    """Seed of the draw."""

    @override
    def kept(self, num_layers: int, keep_layers: int, scores: LayerScores) -> tuple[int, ...]:
        return tuple(sorted(random.Random(self.seed).sample(range(num_layers), keep_layers)))


@dataclass(frozen=True, kw_only=True)
class Magnitude(Selector):
    """Drops the layers that change the hidden state least, relative to its size.

    Samragh et al. 2023, arXiv:2312.09299.
    """

    @override
    def kept(self, num_layers: int, keep_layers: int, scores: LayerScores) -> tuple[int, ...]:
        return without_lowest(scores.statistics().magnitude, keep_layers)


@dataclass(frozen=True, kw_only=True)
class BlockInfluence(Selector):
    """Drops the layers with the lowest block influence: those that rotate the hidden state least.

    Men et al. 2024, ShortGPT, arXiv:2403.03853.
    """

    @override
    def kept(self, num_layers: int, keep_layers: int, scores: LayerScores) -> tuple[int, ...]:
        return without_lowest(scores.statistics().block_influence, keep_layers)


@dataclass(frozen=True, kw_only=True)
class Angular(Selector):
    """Drops the contiguous block with the smallest angular distance between its input and output.

    Gromov et al. 2024, arXiv:2403.17887.
    """

    token: Annotated[str, one_of("last", "mean")]

    @override
    def kept(self, num_layers: int, keep_layers: int, scores: LayerScores) -> tuple[int, ...]:
        found = scores.statistics()
        table = found.angular_distance_last if self.token == "last" else found.angular_distance
        size = num_layers - keep_layers
        starts = range(num_layers - size + 1)
        refuse_unscored((start, table[start][size]) for start in starts)
        best = min(starts, key=lambda start: (table[start][size], start))
        if table[best][size] == inf:
            raise ConfigError(
                f"selector=angular drops one block of {size} layers, and depth.protect leaves no "
                "such block: keep more layers, protect fewer, or choose another selector"
            )
        return tuple(i for i in range(num_layers) if not best <= i < best + size)


@dataclass(frozen=True, kw_only=True)
class LeaveOneOut(Selector):
    """Drops the layers whose removal, each alone, raises the loss least.

    Kim et al. 2024, Shortened LLaMA, arXiv:2402.02834, there with perplexity.
    """

    @override
    def kept(self, num_layers: int, keep_layers: int, scores: LayerScores) -> tuple[int, ...]:
        return without_lowest(scores.statistics().leave_one_out.loss, keep_layers)


@dataclass(frozen=True, kw_only=True)
class LeaveOneOutKL(Selector):
    """Drops the layers whose removal, each alone, changes the predictions least.

    Measured as the Kullback-Leibler divergence from the full model's predictions.
    """

    @override
    def kept(self, num_layers: int, keep_layers: int, scores: LayerScores) -> tuple[int, ...]:
        return without_lowest(scores.statistics().leave_one_out.kl, keep_layers)


@dataclass(frozen=True, kw_only=True)
class Greedy(Selector):
    """Drops the cheapest layer, scores what is left, and repeats.

    Song et al. 2024, SLEB, arXiv:2402.09025.
    """

    @override
    def kept(self, num_layers: int, keep_layers: int, scores: LayerScores) -> tuple[int, ...]:
        dropped = set(scores.greedy(num_layers - keep_layers))
        return tuple(index for index in range(num_layers) if index not in dropped)


@dataclass(frozen=True, kw_only=True)
class Taylor(Selector):
    """Drops the layers with the lowest first-order importance, the sum of |weight x gradient|.

    Kim et al. 2024, Shortened LLaMA, arXiv:2402.02834.
    """

    @override
    def kept(self, num_layers: int, keep_layers: int, scores: LayerScores) -> tuple[int, ...]:
        return without_lowest(scores.taylor(), keep_layers)


def without_lowest(values: Sequence[float], keep_layers: int) -> tuple[int, ...]:
    """Return the indices of the `keep_layers` largest values, ascending; may raise NoScoreError."""
    refuse_unscored(enumerate(values))
    ranked = sorted(range(len(values)), key=lambda index: (values[index], index))
    return tuple(sorted(ranked[len(values) - keep_layers :]))


def refuse_unscored(values: Iterable[tuple[int, float]]) -> None:
    """Raise a NoScoreError if the value of a 0-based layer is missing or NaN."""
    for index, value in values:
        if value is None or value != value:
            raise NoScoreError(index)
