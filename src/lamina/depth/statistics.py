"""What a scan found out about a model's layers: the one thing that every selector reads."""

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

Numbers = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class LeaveOneOut:
    """What the model loses with each layer left out; one entry a layer, all in nats a token."""

    loss: Numbers
    """Mean over all next-token predictions of the calibration windows."""

    stderr: Numbers
    """Standard error of that mean over windows."""

    delta_stderr: Numbers
    """Standard error of the difference to the whole model on the same windows: what tells two
    layers apart, since windows differ more among each other than layers do."""

    kl: Numbers
    """Kullback-Leibler divergence from the whole model's predictions to the reduced model's."""


@dataclass(frozen=True, kw_only=True)
class Stability:
    """How far the ranking of the layers depends on the calibration text."""

    kendall_tau: Numbers
    """Rank correlation of the leave-one-out losses, for each pair of sets: (0, 1), (0, 2), ..."""

    jaccard: Numbers
    """Overlap of the quarter of the layers that cost least, for the same pairs."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Scores of a model's layers; layer indices are 0-based."""

    num_layers: int
    """Decoder layers, L."""

    num_tokens: int
    """Next-token predictions that were scored, of all sets together."""

    num_windows: int
    """Calibration windows that they come from."""

    baseline_loss: float
    """The whole model's, in nats a token."""

    baseline_stderr: float
    """Its standard error over windows."""

    leave_one_out: LeaveOneOut
    """Each layer dropped alone."""

    block_influence: Numbers
    """1 - mean cosine of a layer's input and output, a token at a time (Men et al. 2024, ShortGPT,
    arXiv:2403.03853); one entry a layer."""

    magnitude: Numbers
    """Mean of |output - input| / |output|, a token at a time (Samragh et al. 2023,
    arXiv:2312.09299); one entry a layer."""

    angular_distance: tuple[Numbers, ...]
    """[start][n]: arccos(cosine) / pi between the inputs of layers start and start + n, mean over
    all tokens, for 0 <= n <= L - start; behind the last layer, before the final norm."""

    angular_distance_last: tuple[Numbers, ...]
    """The same on each window's last token only (Gromov et al. 2024, arXiv:2403.17887)."""

    sublayer: dict[str, LeaveOneOut] = field(default_factory=dict)
    """attention, mlp: only that part of each layer dropped; empty unless it was asked for."""

    stability: Stability | None = None
    """Between calibration sets; None with a single one."""

    def content(self) -> dict[str, Any]:
        """Return the same as plain lists and dictionaries."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


def statistics_of(content: dict[str, Any]) -> Statistics:
    """Read what `Statistics.content` returned.

    Args:
        content: Of scan.json; fields that are not of the statistics are left aside.
    """
    names = Statistics.__dataclass_fields__
    values = {name: _tuples(content[name]) for name in names if name in content}
    values["leave_one_out"] = LeaveOneOut(**values["leave_one_out"])
    values["sublayer"] = {
        part: LeaveOneOut(**scores) for part, scores in values.get("sublayer", {}).items()
    }
    if values.get("stability"):
        values["stability"] = Stability(**values["stability"])
    return Statistics(**values)


def _tuples(value: Any) -> Any:
    """Lists to tuples; null in a list to NaN, which JSON does not have."""
    if isinstance(value, list):
        return tuple(math.nan if item is None else _tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value
