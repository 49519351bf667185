"""The result of a scan: the scores of a model's layers, which every selector reads."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

Numbers = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class LeaveOneOut:
    """The model with each layer left out alone; one entry per layer, in nats per token."""

    loss: Numbers
    """Mean over all next-token predictions of the calibration windows."""
    stderr: Numbers
    """Standard error of that mean over windows."""
    delta_stderr: Numbers
    """Standard error of the difference from the full model on the same windows. It tells layers
    apart, since losses vary more between windows than between layers."""
    kl: Numbers
    """Kullback-Leibler divergence from the full model's predictions to the reduced model's."""


@dataclass(frozen=True, kw_only=True)
class Stability:
    """How stable the ranking of the layers is across calibration sets."""

    kendall_tau: Numbers
    """Rank correlation of the leave-one-out losses, for each pair of sets: (0, 1), (0, 2), ..."""
    jaccard: Numbers
    """Overlap of the cheapest quarter of the layers, for the same pairs."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Scores of a model's layers; layer indices are 0-based."""

    num_layers: int
    """Decoder layers, L."""
    num_tokens: int
    """Scored next-token predictions, in all sets together."""
    num_windows: int
    """Calibration windows, in all sets together."""
    baseline_loss: float
    """Loss of the full model in nats per token."""
    baseline_stderr: float
    """Its standard error over windows; NaN, like every layer's, if there is only one window."""
    leave_one_out: LeaveOneOut
    """Each layer left out alone."""
    block_influence: Numbers
    """1 - mean over tokens of the cosine of a layer's input and output; one entry per layer (Men et
    al. 2024, ShortGPT, arXiv:2403.03853)."""
    magnitude: Numbers
    """Mean over tokens of |output - input| / |output|; one entry per layer (Samragh et al. 2023,
    arXiv:2312.09299)."""
    angular_distance: tuple[Numbers, ...]
    """[start][n]: arccos(cosine) / pi between the inputs of layers start and start + n, mean over
    tokens, for 0 <= n <= L - start. The input of "layer L" is the state before the final norm."""
    angular_distance_last: tuple[Numbers, ...]
    """The same for each window's last token only (Gromov et al. 2024, arXiv:2403.17887)."""
    sublayer: dict[str, LeaveOneOut] = field(default_factory=dict)
    """attention, mlp: only that part of each layer left out; empty unless scan.sublayers=true."""
    stability: Stability | None = None
    """Between calibration sets; None with a single set."""

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Statistics":
        """Read scan.json; its other fields are ignored."""
        values = {f.name: _tuples(content[f.name]) for f in fields(cls) if f.name in content}
        if values["baseline_stderr"] is None:
            values["baseline_stderr"] = math.nan
        values["leave_one_out"] = LeaveOneOut(**values["leave_one_out"])
        values["sublayer"] = {
            part: LeaveOneOut(**scores) for part, scores in values.get("sublayer", {}).items()
        }
        if values.get("stability"):
            values["stability"] = Stability(**values["stability"])
        return cls(**values)


def _tuples(value: Any) -> Any:
    """Turn lists into tuples, and null in a list into NaN, which JSON cannot hold."""
    if isinstance(value, list):
        return tuple(math.nan if item is None else _tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value
