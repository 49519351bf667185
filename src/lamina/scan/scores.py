"""Scores from hidden states: losses and divergences, influences and distances."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import mean
from typing import TYPE_CHECKING, Any

from lamina.depth.statistics import LeaveOneOut, Stability, Statistics
from lamina.scan.streams import Left, Streams
from lamina.scan.windows import Windows

if TYPE_CHECKING:
    import torch

HEAD_BYTES = 2**29
"""Memory of one block of predictions, about: the vocabulary is what makes them large."""


@dataclass
class Scores:
    """Sums over windows, for as many of them as have been swept."""

    counts: list[int] = field(default_factory=list)
    """Predictions that count, of each window."""

    loss: dict[Left | None, list[float]] = field(default_factory=dict)
    """Of each stream, the sum over a window's predictions in nats; None is the whole model."""

    kl: dict[Left, list[float]] = field(default_factory=dict)
    """Divergence from the whole model's predictions, summed over a window."""

    cosine: dict[int, list[float]] = field(default_factory=dict)
    """Of each layer's input and output, one mean a window; by position among the kept layers."""

    magnitude: dict[int, list[float]] = field(default_factory=dict)
    """|output - input| / |output| of each layer, one mean a window."""

    angles: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    """arccos / pi between two boundaries, one mean a window."""

    last_angles: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    """The same, of each window's last token."""

    def written(self) -> dict[str, Any]:
        """Return the sums in a form for JSON: a list of keys and values."""
        sums = {
            name: [[key, values] for key, values in kinds.items()]
            for name, kinds in vars(self).items()
            if name != "counts"
        }
        return {**sums, "counts": self.counts}

    @classmethod
    def read(cls, content: dict[str, Any]) -> "Scores":
        """Return the scores of which `written` gave the content."""
        found = cls(counts=list(content["counts"]))
        for name, sums in content.items():
            if name == "counts":
                continue
            for key, values in sums:
                getattr(found, name)[tuple(key) if isinstance(key, list) else key] = values
        return found

    def add_states(self, streams: Streams) -> None:
        """Score what needs no predictions, from the whole model's boundaries."""
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
        """Score every stream's predictions of the next token.

        Args:
            streams: Behind the last layer.
            windows: The text that they come from.
        """
        host = streams.stack.host
        rows = max(1, HEAD_BYTES // (16 * host.model.config.vocab_size))
        for window, ids in enumerate(windows.ids):
            # The state of one token predicts the next one.
            before = windows.counted[window, 1:].nonzero()[:, 0]
            self.counts.append(len(before))
            sums: dict[Any, list[float]] = {}
            for part in before.split(rows):
                targets = ids[part + 1, None].to(host.device)
                for key, value in _predictions(streams, window, part, targets):
                    sums.setdefault(key, []).append(value)
            for key, values in sums.items():
                self._add(key, math.fsum(values))

    def _add(self, key: Any, value: float) -> None:
        if isinstance(key, tuple) and key[0] == "kl":
            self.kl.setdefault(key[1], []).append(value)
        else:
            self.loss.setdefault(key, []).append(value)

    def statistics(self, num_layers: int, sets: Sequence[range]) -> Statistics:
        """Return what was found out.

        Args:
            num_layers: Of the model; no layer may have been skipped.
            sets: The windows of each calibration set.
        """
        whole = self.loss[None]
        parts = sorted({kind for kind, _ in self.kl} - {"layer"})
        return Statistics(
            num_layers=num_layers,
            num_tokens=sum(self.counts),
            num_windows=len(whole),
            baseline_loss=self._mean(whole),
            baseline_stderr=self._stderr(whole),
            leave_one_out=self._left_out("layer", num_layers),
            block_influence=tuple(1 - mean(self.cosine[i]) for i in range(num_layers)),
            magnitude=tuple(mean(self.magnitude[i]) for i in range(num_layers)),
            angular_distance=_triangle(self.angles, num_layers),
            angular_distance_last=_triangle(self.last_angles, num_layers),
            sublayer={part: self._left_out(part, num_layers) for part in parts},
            stability=self._stability(num_layers, sets) if len(sets) > 1 else None,
        )

    def _left_out(self, kind: str, num_layers: int) -> LeaveOneOut:
        whole = self.loss[None]
        losses = [self.loss[kind, i] for i in range(num_layers)]
        deltas = [[a - b for a, b in zip(loss, whole, strict=True)] for loss in losses]
        return LeaveOneOut(
            loss=tuple(map(self._mean, losses)),
            stderr=tuple(map(self._stderr, losses)),
            delta_stderr=tuple(map(self._stderr, deltas)),
            kl=tuple(self._mean(self.kl[kind, i]) for i in range(num_layers)),
        )

    def _mean(self, sums: Sequence[float]) -> float:
        """Per prediction, over all windows."""
        return math.fsum(sums) / sum(self.counts)

    def _stderr(self, sums: Sequence[float]) -> float:
        """Of the mean: windows are the independent draws, and may count different numbers."""
        if len(sums) < 2:
            return 0.0
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
    """Return Kendall's tau-b rank correlation of two scorings; 0 where one is constant."""
    signs = [
        (_sign(a - b), _sign(c - d))
        for (a, c), (b, d) in combinations(zip(first, second, strict=True), 2)
    ]
    untied = [sum(1 for sign in signs if sign[side]) for side in (0, 1)]
    agreement = sum(a * b for a, b in signs)
    return agreement / math.sqrt(untied[0] * untied[1]) if all(untied) else 0.0


def jaccard(first: set[int], second: set[int]) -> float:
    """Return the share of two sets' union that both have."""
    return len(first & second) / len(first | second)


def lowest(values: Sequence[float], number: int) -> set[int]:
    """Return the indices of the smallest values; the earlier one of two equal ones."""
    return set(sorted(range(len(values)), key=lambda index: (values[index], index))[:number])


def _triangle(
    angles: dict[tuple[int, int], list[float]], num_layers: int
) -> tuple[tuple[float, ...], ...]:
    """[start][n] from (start, start + n); a block of no layers turns nothing."""
    return tuple(
        (0.0, *(mean(angles[start, end]) for end in range(start + 1, num_layers + 1)))
        for start in range(num_layers)
    )


def _predictions(
    streams: Streams, window: int, part: "torch.Tensor", targets: "torch.Tensor"
) -> Iterator[tuple[Any, float]]:
    """Give each stream's summed loss and divergence for some tokens of a window."""
    import torch
    from torch.nn.functional import log_softmax

    host = streams.stack.host
    part = part.to(host.device)
    whole = log_softmax(host.logits(streams.whole()[window, part]), dim=-1)
    probabilities = whole.exp()
    yield None, -_sum(whole.gather(1, targets))
    for left, state in zip(streams.left, streams.states, strict=False):
        other = log_softmax(host.logits(state[window, part]), dim=-1)
        yield left, -_sum(other.gather(1, targets))
        gap = (probabilities * (whole - other)).sum(dim=-1, dtype=torch.float64)
        yield ("kl", left), _sum(gap)


def _sum(tensor: "torch.Tensor") -> float:
    return float(tensor.double().sum())


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
