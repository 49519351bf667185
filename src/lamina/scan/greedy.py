"""Greedy removal: drop the cheapest layer, score what is left, repeat."""

import logging
import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

from lamina.depth.selection import refuse_unscored
from lamina.runtime.console import stage
from lamina.scan.calibration import Windows
from lamina.scan.layers import LayerStack
from lamina.scan.passes import Budget, ScanSettings, budget, score_removals
from lamina.scan.scores import Scores
from lamina.scan.streams import Streams
from lamina.units import format_duration

logger = logging.getLogger(__name__)


def greedy_order(
    stack: LayerStack,
    windows: Windows,
    settings: ScanSettings,
    count: int,
    known: Sequence[int],
    free: int,
    protected: frozenset[int] = frozenset(),
) -> list[int]:
    """Return the layers to drop, in order (Song et al. 2024, SLEB, arXiv:2402.09025).

    All candidates of a round share the layers before them, and the layers before the one dropped
    are shared with the previous round. `known` is the beginning of the order, `free` the free
    memory in bytes; layers in `protected` stay.
    """
    alone = replace(settings, sublayers=False)
    allowed = budget(alone, stack, windows, free, stack.num_layers - len(known))
    search = GreedySearch(stack, windows, allowed, known, protected)
    dropped, began = search.dropped, time.monotonic()
    while len(dropped) < count:
        search.drop_next()
        logger.info("greedy: dropping layer %d, %d of %d", dropped[-1], len(dropped), count)
    rounds, spent = count - len(known), format_duration(time.monotonic() - began)
    logger.info("greedy: took %s after the scan, rounds: %d", spent, rounds)
    return dropped


class GreedySearch:
    """A greedy search that drops one layer per round."""

    def __init__(
        self,
        stack: LayerStack,
        windows: Windows,
        allowed: Budget,
        dropped: Sequence[int],
        protected: frozenset[int] = frozenset(),
    ) -> None:
        """Continue after some 0-based layers that are dropped already, in order.

        Text that takes several passes leaves no room to keep states between rounds, so each round
        starts from the embeddings.
        """
        self.stack, self.windows, self.allowed = stack, windows, allowed
        self.dropped, self.protected = list(dropped), protected
        self.layer_forwards = 0
        """Layers applied, counted once per stream."""
        self._streams: Streams | None = None
        self._marks = range(0)

    def drop_next(self) -> None:
        """Drop the layer whose removal gives the lowest loss."""
        if self.allowed.windows < len(self.windows):
            skipped = frozenset(self.dropped)
            scores, cost = score_removals(
                self.stack, self.windows, self.allowed, sublayers=False, skipped=skipped
            )
            self.layer_forwards += cost.layer_forwards
        else:
            scores = self._one_pass()
        losses = {key[1]: sum(nll) for key, nll in scores.loss.items() if key is not None}
        self.dropped.append(cheapest(losses, self.protected))

    def _one_pass(self) -> Scores:
        import torch

        if self.allowed.hold:
            self.stack.hold()
        with torch.inference_mode():
            streams, start = self._resumed()
            before = streams.layer_forwards
            with stage("scoring layers", streams.forwards_left, "forward passes") as shown:
                for index, block in self.stack.blocks(start, streams.skipped):
                    shown.notes = (f"layer {index + 1} of {self.stack.num_layers}",)
                    streams.advance(index, block, shown.advance)
                    if streams.done in self._marks:
                        streams.mark()
            self.layer_forwards += streams.layer_forwards - before
            scores = Scores()
            scores.add_predictions(streams, self.windows)
        return scores

    def _resumed(self) -> tuple[Streams, int]:
        """Return the streams, reset to before the last removal, and the layer to continue with."""
        if self._streams is not None:
            return self._streams, self._streams.leave_out(self.dropped[-1])
        dropped = frozenset(self.dropped)
        self._streams = Streams(self.stack, self.windows, sublayers=False, skipped=dropped)
        room = self.allowed.spare // self._streams.boundaries[0].nbytes
        self._marks = marked_depths(self.stack.num_layers - len(dropped), room)
        return self._streams, 0


def cheapest(losses: Mapping[int, float], protected: AbstractSet[int]) -> int:
    """Return the layer of least loss that is not protected; ties go to the earlier one.

    `losses` are by 0-based layer. Raises NoScoreError if one of them is NaN.
    """
    candidates = {index: loss for index, loss in losses.items() if index not in protected}
    refuse_unscored(candidates.items())
    return min(candidates, key=lambda index: (candidates[index], index))


def marked_depths(depth: int, room: int) -> range:
    """Return evenly spaced depths at which all streams are kept for the next round.

    `room` is the number of states that fit into memory; after k layers there are k streams.
    """
    for step in range(1, depth):
        marks = range(step, depth, step)
        if sum(marks) <= room:
            return marks
    return range(0)
