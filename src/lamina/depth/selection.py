"""Selectors: which layers of a model stay, when only their number is given.

Each answers one question from one object of scores. Ties go to the earlier layer, so that a choice
never depends on anything but the scores.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from lamina.depth.statistics import Statistics
from lamina.errors import ConfigError
from lamina.limits import one_of


class LayerScores(Protocol):
    """Scores of a model's layers, each computed when it is first asked for."""

    def statistics(self) -> Statistics:
        """Return what one sweep over the weights finds."""
        ...

    def greedy(self, count: int) -> tuple[int, ...]:
        """Return `count` 0-based layers, one after the other the cheapest of those then left."""
        ...

    def taylor(self) -> tuple[float, ...]:
        """Return each layer's first-order importance."""
        ...


class ScoresNeededError(Exception):
    """A choice takes scores that are not to be had where it was made."""


class NoScores:
    """Stands where the choice may go by position only."""

    def statistics(self) -> Statistics:
        """Raise ScoresNeededError."""
        raise ScoresNeededError

    def greedy(self, count: int) -> tuple[int, ...]:
        """Raise ScoresNeededError."""
        raise ScoresNeededError

    def taylor(self) -> tuple[float, ...]:
        """Raise ScoresNeededError."""
        raise ScoresNeededError


class Selector(Protocol):
    """A way to choose layers."""

    def kept(self, num_layers: int, keep_layers: int, scores: LayerScores) -> tuple[int, ...]:
        """Return the 0-based indices that stay, ascending.

        Args:
            num_layers: Of the model.
            keep_layers: How many stay, from 1 to num_layers - 1.
            scores: Not asked for anything by a selector that goes by position.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class First:
    """The first layers."""

    def kept(self, num_layers: int, keep_layers: int, scores: LayerScores) -> tuple[int, ...]:
        """Keep [0, keep_layers)."""
        return tuple(range(keep_layers))


@dataclass(frozen=True, kw_only=True)
class Last:
    """The last layers."""

    def kept(self, num_layers: int, keep_layers: int, scores: LayerScores) -> tuple[int, ...]:
        """Keep [num_layers - keep_layers, num_layers)."""
        return tuple(range(num_layers - keep_layers, num_layers))


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """Evenly spaced layers, the first and the last among them.

    As DistilBERT was initialised from BERT (Sanh et al. 2019, arXiv:1910.01108).
    """

    def kept(self, num_layers: int, keep_layers: int, scores: LayerScores) -> tuple[int, ...]:
        """Keep layers whose distances differ by one at most; the first if there is only one."""
        gaps = max(1, keep_layers - 1)
        return tuple((index * (num_layers - 1) + gaps // 2) // gaps for index in range(keep_layers))


@dataclass(frozen=True, kw_only=True)
class Random:
    """Layers drawn at random: what any other choice has to beat."""

    seed: int
    """Of the draw."""

    def kept(self, num_layers: int, keep_layers: int, scores: LayerScores) -> tuple[int, ...]:
        """Keep a random set."""
        return tuple(sorted(random.Random(self.seed).sample(range(num_layers), keep_layers)))


@dataclass(frozen=True, kw_only=True)
class Magnitude:
    """Drops the layers that add least to what passes through them, relative to its size.

    Samragh et al. 2023, arXiv:2312.09299.
    """

    def kept(self, num_layers: int, keep_layers: int, scores: LayerScores) -> tuple[int, ...]:
        """Drop the smallest relative magnitudes."""
        return without_lowest(scores.statistics().magnitude, keep_layers)


@dataclass(frozen=True, kw_only=True)
class BlockInfluence:
    """Drops the layers that turn what passes through them least.

    Men et al. 2024, ShortGPT, arXiv:2403.03853.
    """

    def kept(self, num_layers: int, keep_layers: int, scores: LayerScores) -> tuple[int, ...]:
        """Drop the smallest block influences."""
        return without_lowest(scores.statistics().block_influence, keep_layers)


@dataclass(frozen=True, kw_only=True)
class Angular:
    """Drops the contiguous block over which the state turns least.

    Gromov et al. 2024, arXiv:2403.17887.
    """

    token: Annotated[str, one_of("last", "mean")]
    """Whose state counts: last for each window's last token, as in the paper, or mean for all."""

    def kept(self, num_layers: int, keep_layers: int, scores: LayerScores) -> tuple[int, ...]:
        """Drop the best block of num_layers - keep_layers layers."""
        found = scores.statistics()
        table = found.angular_distance_last if self.token == "last" else found.angular_distance
        size = num_layers - keep_layers
        starts = range(num_layers - size + 1)
        best = min(starts, key=lambda start: (table[start][size], start))
        return tuple(i for i in range(num_layers) if not best <= i < best + size)


@dataclass(frozen=True, kw_only=True)
class LeaveOneOutLoss:
    """Drops the layers without which, each alone, the loss rises least.

    Kim et al. 2024, Shortened LLaMA, arXiv:2402.02834, there with perplexity.
    """

    def kept(self, num_layers: int, keep_layers: int, scores: LayerScores) -> tuple[int, ...]:
        """Drop the smallest leave-one-out losses."""
        return without_lowest(scores.statistics().leave_one_out.loss, keep_layers)


@dataclass(frozen=True, kw_only=True)
class LeaveOneOutKL:
    """Drops the layers without which, each alone, the predictions change least.

    Measured by their Kullback-Leibler divergence from the whole model's.
    """

    def kept(self, num_layers: int, keep_layers: int, scores: LayerScores) -> tuple[int, ...]:
        """Drop the smallest divergences."""
        return without_lowest(scores.statistics().leave_one_out.kl, keep_layers)


@dataclass(frozen=True, kw_only=True)
class Greedy:
    """Drops the layer that costs least, scores what is left, and so on.

    Song et al. 2024, SLEB, arXiv:2402.09025.
    """

    def kept(self, num_layers: int, keep_layers: int, scores: LayerScores) -> tuple[int, ...]:
        """Drop one layer a round."""
        dropped = set(scores.greedy(num_layers - keep_layers))
        return tuple(index for index in range(num_layers) if index not in dropped)


@dataclass(frozen=True, kw_only=True)
class Taylor:
    """Drops the layers whose weights matter least to the loss by its first-order expansion.

    That is the sum of |weight x gradient|; Kim et al. 2024, Shortened LLaMA, arXiv:2402.02834.
    """

    def kept(self, num_layers: int, keep_layers: int, scores: LayerScores) -> tuple[int, ...]:
        """Drop the smallest importances."""
        return without_lowest(scores.taylor(), keep_layers)


def without_lowest(values: Sequence[float], keep_layers: int) -> tuple[int, ...]:
    """Return the indices of the `keep_layers` largest values, ascending.

    Raises:
        ConfigError: A value is missing or not a number: nothing could be said about that layer.
    """
    for index, value in enumerate(values):
        if value is None or value != value:
            raise ConfigError(
                f"layer {index} has no score (its loss is not finite): give dtype=float32"
            )
    ranked = sorted(range(len(values)), key=lambda index: (values[index], index))
    return tuple(sorted(ranked[len(values) - keep_layers :]))
