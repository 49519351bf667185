"""The columns of the page's table, which are also the measures and costs of its charts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lamina.depth.layer_sets import format_layers
from lamina.report.runs import RunRow

Z = 1.96
"""Standard errors to either side of a figure that make its 95 % interval."""

SHARES = ("acc", "acc_norm", "exact_match", "top1", "ended", "looped", "capped")
LOWER_IS_BETTER = ("loss", "perplexity", "kl", "looped", "capped")


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the ranked table, which charts can also draw."""

    key: str
    label: str
    kind: str
    """text, override, integer, number, signed, share, count or bytes: how the page formats it."""
    of: Callable[[RunRow], Any]
    """A number, a text or an interval; None if it is not known."""
    is_higher_better: bool = False
    about: str = ""
    """Its unit, or what else a reader may want to know."""
    reference: Callable[[RunRow], float | None] = lambda _: None
    """The same figure of the original model."""
    chance: Callable[[RunRow], float | None] = lambda _: None
    """What guessing reaches."""

    @property
    def axis_title(self) -> str:
        """Its label and unit."""
        return f"{self.label}, {self.about}" if self.about else self.label

    def to_dict(self) -> dict[str, Any]:
        """Return what the page needs of it."""
        order = "descending" if self.is_higher_better else "ascending"
        about = {"key": self.key, "label": self.label, "kind": self.kind}
        return {**about, "order": order, "about": self.about or None}


COSTS = (
    Column(key="layers", label="Layers", kind="integer", of=lambda row: row.layers),
    Column(key="parameters", label="Parameters", kind="count", of=lambda row: row.parameters),
    Column(
        key="bytes",
        label="Size",
        kind="bytes",
        of=lambda row: row.bytes,
        about="bytes of the weights",
    ),
    Column(
        key="decode",
        label="Decode",
        kind="count",
        of=lambda row: row.decode_tokens_per_second,
        is_higher_better=True,
        about="tokens per second",
    ),
)

LOSS = Column(
    key="loss",
    label="Healed loss",
    kind="number",
    of=lambda row: _interval({"value": row.healed_loss, "stderr": row.healed_stderr}),
    about="nats per token",
    reference=lambda row: row.baseline_loss,
)

FIRST = (
    Column(key="rank", label="#", kind="integer", of=lambda row: row.rank, about="by healed loss"),
    Column(key="name", label="Run", kind="text", of=lambda row: row.name),
)

OTHERS = (
    Column(
        key="reduced",
        label="Reduced loss",
        kind="number",
        of=lambda row: row.reduced_loss,
        about="before healing, nats per token",
    ),
    Column(
        key="difference",
        label="Above original",
        kind="signed",
        of=lambda row: row.difference,
        about="nats per token",
    ),
)

LAST = (
    Column(
        key="dropped",
        label="Dropped",
        kind="text",
        of=lambda row: format_layers(row.dropped_layers) if row.dropped_layers else None,
        about="0-based layers, half-open ranges",
    ),
    Column(
        key="trained",
        label="Trained tokens",
        kind="count",
        of=lambda row: row.trained_tokens,
    ),
    Column(
        key="seconds",
        label="Training",
        kind="number",
        of=lambda row: row.train_seconds,
        about="seconds",
    ),
    Column(key="status", label="Status", kind="text", of=lambda row: row.status),
)


def measures(rows: Sequence[RunRow]) -> list[Column]:
    """Return the loss and each task's metric that any row has."""
    names = {
        (task, metric): None for row in rows for task in row.tasks for metric in row.tasks[task]
    }
    # A perplexity says the same as its loss.
    shown = [pair for pair in names if pair[1] != "perplexity" or (pair[0], "loss") not in names]
    return [LOSS, *(_score(number, *pair) for number, pair in enumerate(shown))]


def _score(number: int, task: str, metric: str) -> Column:
    def role(row: RunRow, name: str) -> Mapping[str, Any]:
        return row.tasks.get(task, {}).get(metric, {}).get(name) or {}

    is_share = metric in SHARES
    return Column(
        key=f"score{number}",
        label=f"{task} {metric}",
        kind="share" if is_share else "number",
        of=lambda row: _interval(role(row, "final"), is_share),
        is_higher_better=not any(metric.endswith(name) for name in LOWER_IS_BETTER),
        about="with 95 % interval",
        reference=lambda row: role(row, "original").get("value"),
        chance=lambda row: role(row, "final").get("chance"),
    )


def _interval(figure: Mapping[str, Any], is_share: bool = False) -> dict[str, float] | None:
    value, stderr = figure.get("value"), figure.get("stderr")
    if value is None:
        return None
    if stderr is None:
        return {"value": value}
    low, high = value - Z * stderr, value + Z * stderr
    ends = (max(0.0, low), min(1.0, high)) if is_share else (low, high)
    return {"value": value, "low": ends[0], "high": ends[1]}


def columns(rows: Sequence[RunRow]) -> list[Column]:
    """Return the table's columns that hold anything, those of overrides at its end."""
    found = [*FIRST, COSTS[0], *measures(rows), *OTHERS, *COSTS[1:], *LAST]
    found += [_override(number, key) for number, key in enumerate(override_keys(rows))]
    return [column for column in found if any(column.of(row) is not None for row in rows)]


def _override(number: int, key: str) -> Column:
    of = lambda row: overrides(row).get(key)  # noqa: E731
    return Column(key=f"override{number}", label=key, kind="override", of=of)


def overrides(row: RunRow) -> dict[str, str]:
    """Return the values of a run's overrides by key."""
    pairs = (override.lstrip("+").partition("=") for override in row.overrides)
    return {key: value for key, _, value in pairs}


def override_keys(rows: Sequence[RunRow]) -> list[str]:
    """Return the keys of the overrides in which runs differ, in the order given."""
    given = [overrides(row) for row in rows]
    keys = dict.fromkeys(key for each in given for key in each)
    return [key for key in keys if len({each.get(key) for each in given}) > 1]


def value_of(figure: Any) -> float:
    """Return a number, or the value of an interval."""
    value: float = figure["value"] if isinstance(figure, dict) else figure
    return value
