"""Greedy removal: the cheapest layer goes, what is left is scored, and so on."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from lamina.scan.layers import LayerStack
from lamina.scan.passes import Budget, ScanSettings, budget, sweep
from lamina.scan.scores import Scores
from lamina.scan.streams import Streams
from lamina.scan.windows import Windows

logger = logging.getLogger(__name__)


def greedy_order(
    stack: LayerStack,
    windows: Windows,
    settings: ScanSettings,
    count: int,
    known: Sequence[int],
    free: int,
) -> list[int]:
    """Return which layers go, in order (Song et al. 2024, SLEB, arXiv:2402.09025).

    In a round all candidates share the layers before them, and what lies before the layer that
    went is shared with the round before.

    Args:
        stack: The model.
        windows: Calibration text.
        settings: Of the scan; sublayers play no role.
        count: How many layers go.
        known: The beginning of the order, where it is known already.
        free: Bytes of memory that the machine has left.
    """
    alone = replace(settings, sublayers=False)
    allowed = budget(alone, stack, windows, free, stack.num_layers - len(known))
    rounds = Rounds(stack, windows, allowed, known)
    while len(rounds.gone) < count:
        rounds.next()
        logger.info("greedy: layer %d goes, %d of %d", rounds.gone[-1], len(rounds.gone), count)
    return rounds.gone


class Rounds:
    """A greedy search, a layer a round."""

    def __init__(
        self, stack: LayerStack, windows: Windows, allowed: Budget, gone: Sequence[int]
    ) -> None:
        """Compute nothing yet.

        Args:
            stack: The model.
            windows: Calibration text.
            allowed: What fits into memory. Text that takes several passes leaves no room to keep
                states from one round to the next: each of its rounds begins anew.
            gone: 0-based layers that went already, in order.
        """
        self.stack, self.windows, self.allowed = stack, windows, allowed
        self.gone = list(gone)
        self.layer_forwards = 0
        """Layers applied, once for each stream."""
        self._streams: Streams | None = None
        self._marks = range(0)

    def next(self) -> None:
        """Let the layer go without which the loss is the smallest."""
        if self.allowed.windows < len(self.windows):
            scores, cost = sweep(
                self.stack,
                self.windows,
                self.allowed,
                sublayers=False,
                folder=None,
                skipped=frozenset(self.gone),
            )
            self.layer_forwards += cost.layer_forwards
        else:
            scores = self._one_pass()
        losses = {left[1]: sum(nll) for left, nll in scores.loss.items() if left is not None}
        self.gone.append(min(losses, key=lambda index: (losses[index], index)))

    def _one_pass(self) -> Scores:
        import torch
        from tqdm import tqdm

        if self.allowed.hold:
            self.stack.hold()
        with torch.inference_mode():
            streams, start = self._begun()
            before = streams.layer_forwards
            # disable=None: quiet where the console is a file.
            with tqdm(total=streams.forwards_left, unit="stream", disable=None, leave=False) as bar:
                for index, block in self.stack.blocks(start, streams.skipped):
                    bar.set_description(f"layer {index + 1}/{self.stack.num_layers}")
                    streams.advance(index, block, bar.update)
                    if streams.done in self._marks:
                        streams.mark()
            self.layer_forwards += streams.layer_forwards - before
            scores = Scores()
            scores.add_predictions(streams, self.windows)
        return scores

    def _begun(self) -> tuple[Streams, int]:
        """Return the streams, back where the last removal changes nothing yet, and what is next."""
        if self._streams is not None:
            return self._streams, self._streams.leave_out(self.gone[-1])
        gone = frozenset(self.gone)
        self._streams = Streams(self.stack, self.windows, sublayers=False, skipped=gone)
        room = self.allowed.spare // self._streams.boundaries[0].nbytes
        self._marks = marked(self.stack.num_layers - len(gone), room)
        return self._streams, 0


def marked(depth: int, room: int) -> range:
    """Return behind how many layers all streams are kept for the next round, at even distances.

    Args:
        depth: Layers that are left.
        room: States that fit; behind k layers there are k streams.
    """
    for step in range(1, depth):
        marks = range(step, depth, step)
        if sum(marks) <= room:
            return marks
    return range(0)
