"""Scores from hidden states: losses and divergences, influences and distances."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import mean
from typing import TYPE_CHECKING, Any

from lamina.depth.statistics import LeaveOneOut, Stability, Statistics
from lamina.runtime.console import stage
from lamina.scan.calibration import Windows
from lamina.scan.streams import Removal, Streams

if TYPE_CHECKING:
    import torch

HEAD_BYTES = 2**29
"""Approximate bytes of one block of logits: the vocabulary makes them large."""


@dataclass
class Scores:
    """Sums over each window swept so far."""

    counts: list[int] = field(default_factory=list)
    """Scored predictions per window."""
    loss: dict[Removal | None, list[float]] = field(default_factory=dict)
    """Loss of each stream, summed over a window, in nats; None is the full model."""
    kl: dict[Removal, list[float]] = field(default_factory=dict)
    """Divergence from the full model's predictions, summed over a window, in nats."""
    cosine: dict[int, list[float]] = field(default_factory=dict)
    """Mean cosine per window of each layer's input and output, by position among kept layers."""
    magnitude: dict[int, list[float]] = field(default_factory=dict)
    """Mean per window of |output - input| / |output| of each layer."""
    angles: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    """Mean per window of arccos(cosine) / pi between two boundaries."""
    last_angles: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    """The same for each window's last token."""

    def to_dict(self) -> dict[str, Any]:
        """Return a form for JSON: each dictionary as a list of keys and values."""
        sums = {
            name: [[key, values] for key, values in kinds.items()]
            for name, kinds in vars(self).items()
            if name != "counts"
        }
        return {**sums, "counts": self.counts}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Scores":
        """Read what `to_dict` returned."""
        found = cls(counts=list(content["counts"]))
        for name, sums in content.items():
            if name == "counts":
                continue
            for key, values in sums:
                getattr(found, name)[tuple(key) if isinstance(key, list) else key] = values
        return found

    def add_states(self, streams: Streams) -> None:
        """Add the scores that need no predictions, from the full model's boundaries."""
        for end in range(1, streams.done + 1):
            for window in range(streams.windows):
                self._add_window(streams, end, window)

    def _add_window(self, streams: Streams, end: int, window: int) -> None:
        import torch

        now = streams.boundaries[end, window].double()
        for start in range(end):
            before = streams.boundaries[start, window].double()
            cosine = torch.nn.functional.cosine_similarity(before, now, dim=-1)
            angles = cosine.clamp(-1, 1).acos() / math.pi
            self.angles.setdefault((start, end), []).append(angles.mean().item())
            self.last_angles.setdefault((start, end), []).append(angles[-1].item())
        ratio = (now - before).norm(dim=-1) / now.norm(dim=-1)
        self.cosine.setdefault(end - 1, []).append(cosine.mean().item())
        self.magnitude.setdefault(end - 1, []).append(ratio.mean().item())

    def add_predictions(self, streams: Streams, windows: Windows) -> None:
        """Add the scores of every stream's next-token predictions, after the last layer."""
        shell = streams.stack.shell
        rows = max(1, HEAD_BYTES // (16 * shell.model.config.vocab_size))
        with stage("scoring predictions", len(windows), "windows") as shown:
            for window, ids in enumerate(windows.ids):
                # A token's state predicts the next token.
                before = windows.scored[window, 1:].nonzero()[:, 0]
                self.counts.append(len(before))
                losses: dict[Removal | None, list[float]] = defaultdict(list)
                divergences: dict[Removal, list[float]] = defaultdict(list)
                for part in before.split(rows):
                    targets = ids[part + 1, None].to(shell.device)
                    for removal, loss, divergence in _predictions(streams, window, part, targets):
                        losses[removal].append(loss)
                        if removal is not None:
                            divergences[removal].append(divergence)
                for removal, values in losses.items():
                    self.loss.setdefault(removal, []).append(math.fsum(values))
                for removal, values in divergences.items():
                    self.kl.setdefault(removal, []).append(math.fsum(values))
                shown.advance()

    def statistics(self, num_layers: int, sets: Sequence[range]) -> Statistics:
        """Average the sums of a scan that skipped no layer; `sets` are ranges of windows."""
        full = self.loss[None]
        parts = sorted({kind for kind, _ in self.kl} - {"layer"})
        return Statistics(
            num_layers=num_layers,
            num_tokens=sum(self.counts),
            num_windows=len(full),
            baseline_loss=self._mean(full),
            baseline_stderr=self._stderr(full),
            leave_one_out=self._left_out("layer", num_layers),
            block_influence=tuple(1 - mean(self.cosine[i]) for i in range(num_layers)),
            magnitude=tuple(mean(self.magnitude[i]) for i in range(num_layers)),
            angular_distance=_triangle(self.angles, num_layers),
            angular_distance_last=_triangle(self.last_angles, num_layers),
            sublayer={part: self._left_out(part, num_layers) for part in parts},
            stability=self._stability(num_layers, sets) if len(sets) > 1 else None,
        )

    def _left_out(self, kind: str, num_layers: int) -> LeaveOneOut:
        full = self.loss[None]
        losses = [self.loss[kind, i] for i in range(num_layers)]
        deltas = [[a - b for a, b in zip(loss, full, strict=True)] for loss in losses]
        return LeaveOneOut(
            loss=tuple(map(self._mean, losses)),
            stderr=tuple(map(self._stderr, losses)),
            delta_stderr=tuple(map(self._stderr, deltas)),
            kl=tuple(self._mean(self.kl[kind, i]) for i in range(num_layers)),
        )

    def _mean(self, sums: Sequence[float]) -> float:
        """Mean per prediction over all windows."""
        return math.fsum(sums) / sum(self.counts)

    def _stderr(self, sums: Sequence[float]) -> float:
        """Standard error of the mean over windows of unequal size; NaN if there is only one."""
        if len(sums) < 2:
            return math.nan
        mean = self._mean(sums)
        spread = math.fsum((s - mean * n) ** 2 for s, n in zip(sums, self.counts, strict=True))
        return math.sqrt(spread * len(sums) / (len(sums) - 1)) / sum(self.counts)

    def _stability(self, num_layers: int, sets: Sequence[range]) -> Stability:
        rankings = [
            [math.fsum(self.loss["layer", i][w] for w in windows) for i in range(num_layers)]
            for windows in sets
        ]
        pairs = list(combinations(rankings, 2))
        chosen = max(1, num_layers // 4)
        return Stability(
            kendall_tau=tuple(kendall_tau(a, b) for a, b in pairs),
            jaccard=tuple(jaccard(lowest(a, chosen), lowest(b, chosen)) for a, b in pairs),
        )


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Kendall's tau-b rank correlation of two scorings; 0 if one is constant."""
    signs = [
        (_sign(a - b), _sign(c - d))
        for (a, c), (b, d) in combinations(zip(first, second, strict=True), 2)
    ]
    untied = [sum(1 for sign in signs if sign[side]) for side in (0, 1)]
    agreement = sum(a * b for a, b in signs)
    return agreement / math.sqrt(untied[0] * untied[1]) if all(untied) else 0.0


def jaccard(first: set[int], second: set[int]) -> float:
    """Return the size of two sets' intersection relative to their union."""
    return len(first & second) / len(first | second)


def lowest(values: Sequence[float], number: int) -> set[int]:
    """Return the indices of the `number` smallest values; ties go to the earlier one."""
    return set(sorted(range(len(values)), key=lambda index: (values[index], index))[:number])


def _triangle(
    angles: dict[tuple[int, int], list[float]], num_layers: int
) -> tuple[tuple[float, ...], ...]:
    """Arrange (start, start + n) as [start][n]; an empty block has distance 0."""
    return tuple(
        (0.0, *(mean(angles[start, end]) for end in range(start + 1, num_layers + 1)))
        for start in range(num_layers)
    )


def _predictions(
    streams: Streams, window: int, part: "torch.Tensor", targets: "torch.Tensor"
) -> Iterator[tuple[Removal | None, float, float]]:
    """Yield each stream's summed loss and KL divergence for some tokens of a window."""
    import torch
    from torch.nn.functional import log_softmax

    shell = streams.stack.shell
    part = part.to(shell.device)
    full = log_softmax(shell.logits(streams.boundaries[streams.done][window, part]), dim=-1)
    probabilities = full.exp()
    yield None, -_sum(full.gather(1, targets)), 0.0
    for removal, state in zip(streams.removals, streams.states, strict=False):
        reduced = log_softmax(shell.logits(state[window, part]), dim=-1)
        gap = (probabilities * (full - reduced)).sum(dim=-1, dtype=torch.float64)
        yield removal, -_sum(reduced.gather(1, targets)), _sum(gap)


def _sum(tensor: "torch.Tensor") -> float:
    return float(tensor.double().sum())


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
