"""Greedy removal: the cheapest layer goes, what is left is scored, and so on."""

import logging
from collections.abc import Sequence

from lamina.depth.scan import ScanSettings, budget, sweep
from lamina.depth.stack import LayerStack
from lamina.depth.windows import Windows

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

    Every round is one sweep, in which all candidates share the layers before them: about half of
    the layer-forwards that evaluating each candidate by itself takes.

    Args:
        stack: The model.
        windows: Calibration text.
        settings: Of the scan; sublayers play no role.
        count: How many layers go.
        known: The beginning of the order, where it is known already.
        free: Bytes of memory that the machine has left.
    """
    order = list(known)
    while len(order) < count:
        gone = frozenset(order)
        left = stack.num_layers - len(gone)
        allowed = budget(settings, stack, windows, free, left)
        scores, _ = sweep(stack, windows, allowed, sublayers=False, folder=None, skipped=gone)
        mean = {index: sum(scores.loss["layer", index]) for index in range(stack.num_layers)
                if index not in gone}  # fmt: skip
        order.append(min(mean, key=lambda index: (mean[index], index)))
        logger.info("greedy: layer %d goes, %d of %d", order[-1], len(order), count)
    return order
