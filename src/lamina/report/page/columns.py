"""The columns of the page's table, which are also the measures and costs of its charts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from lamina.depth.layer_sets import format_layers
from lamina.measure.tasks.figures import HALF_WIDTH, SHARES
from lamina.measure.tasks.files import ORIGINAL
from lamina.measure.tasks.items import ROWS
from lamina.report.runs import RunRow, is_lower_better, override_values

NATS = "nats per token"


@dataclass(frozen=True)
class Column:
    """A column of the ranked table, which charts can also draw."""

    key: str
    label: str
    kind: str
    """text, override, integer, number, signed, share, count or bytes: how the page formats it."""
    of: Callable[[RunRow], Any]
    """A number, a text or an interval; None if it is not known."""
    _: KW_ONLY
    about: str = ""
    """Its unit, or what else a reader may want to know."""
    is_higher_better: bool = False
    reference: Callable[[RunRow], float | None] = lambda _: None
    """The same figure of the original model."""
    chance: Callable[[RunRow], float | None] = lambda _: None
    """What guessing reaches."""
    standing: Callable[[RunRow], str | None] = lambda _: None
    """Whether the figure is the best of all runs, or within noise of it."""

    @property
    def axis_title(self) -> str:
        """Its label and unit."""
        return f"{self.label}, {self.about}" if self.about else self.label

    def to_dict(self) -> dict[str, Any]:
        """Return what the page needs of it."""
        order = "descending" if self.is_higher_better else "ascending"
        about = {"key": self.key, "label": self.label, "kind": self.kind}
        return {**about, "order": order, "about": self.about or None}


FIRST = (
    Column("rank", "#", "integer", lambda row: row.rank, about="by healed loss"),
    Column("name", "Run", "text", lambda row: row.name),
)

COSTS = (
    Column("layers", "Layers", "integer", lambda row: row.layers),
    Column("parameters", "Parameters", "count", lambda row: row.parameters),
    Column("bytes", "Size", "bytes", lambda row: row.bytes, about="bytes of the weights"),
    Column(
        "decode",
        "Decode",
        "count",
        lambda row: row.decode_tokens_per_second,
        about="tokens per second",
        is_higher_better=True,
    ),
)

LOSS = Column(
    "loss",
    "Healed loss",
    "number",
    lambda row: _interval({"value": row.healed_loss, "stderr": row.healed_stderr}),
    about=NATS,
    reference=lambda row: row.baseline_loss,
)

OTHERS = (
    Column("reduced", "Reduced loss", "number", lambda row: row.reduced_loss, about=NATS),
    Column("difference", "Above original", "signed", lambda row: row.difference, about=NATS),
)

LAST = (
    Column(
        "dropped",
        "Dropped",
        "text",
        lambda row: format_layers(row.dropped_layers) if row.dropped_layers else None,
        about="0-based layers, half-open ranges",
    ),
    Column("trained", "Trained tokens", "count", lambda row: row.trained_tokens),
    Column("rounds", "Rounds", "text", lambda row: row.rounds, about="of a ladder, healed losses"),
    Column("seconds", "Training", "number", lambda row: row.train_seconds, about="seconds"),
    Column("memory", "Peak memory", "bytes", lambda row: row.peak_memory_bytes, about="training"),
    Column("status", "Status", "text", lambda row: row.status),
)


def measures(rows: Sequence[RunRow]) -> list[Column]:
    """Return the loss and each task's metric that any row has."""
    names = {
        (task, metric): None for row in rows for task in row.tasks for metric in row.tasks[task]
    }
    # A perplexity says the same as its loss, and the loss on a run's own rows is the healed one.
    shown = [pair for pair in names if pair[1] != "perplexity" or (pair[0], "loss") not in names]
    if all(row.healed_loss is not None for row in rows if ROWS in row.tasks):
        shown = [pair for pair in shown if pair != (ROWS, "loss")]
    return [LOSS, *(_score(rows, number, *pair) for number, pair in enumerate(shown))]


def _score(rows: Sequence[RunRow], number: int, task: str, metric: str) -> Column:
    is_share = metric in SHARES
    return Column(
        f"score{number}",
        f"{task} {metric}",
        "share" if is_share else "number",
        lambda row: _interval(row.figure(task, metric), is_share),
        about="with 95 % interval",
        is_higher_better=not is_lower_better(rows, task, metric),
        reference=lambda row: row.figure(task, metric, ORIGINAL).get("value"),
        chance=lambda row: row.figure(task, metric).get("chance"),
        standing=lambda row: row.standings.get(task, {}).get(metric),
    )


def _interval(figure: Mapping[str, Any], is_share: bool = False) -> dict[str, float] | None:
    value, stderr = figure.get("value"), figure.get("stderr")
    if value is None:
        return None
    if stderr is None:
        return {"value": value}
    low, high = value - HALF_WIDTH * stderr, value + HALF_WIDTH * stderr
    ends = (max(0.0, low), min(1.0, high)) if is_share else (low, high)
    return {"value": value, "low": ends[0], "high": ends[1]}


def columns(rows: Sequence[RunRow]) -> list[Column]:
    """Return the table's columns that hold anything, those of overrides at its end."""
    found = [*FIRST, COSTS[0], *measures(rows), *OTHERS, *COSTS[1:], *LAST]
    found += [_override(number, key) for number, key in enumerate(override_keys(rows))]
    return [column for column in found if any(column.of(row) is not None for row in rows)]


def _override(number: int, key: str) -> Column:
    of = lambda row: override_values(row.overrides).get(key)  # noqa: E731
    return Column(f"override{number}", key, "override", of)


def override_keys(rows: Sequence[RunRow]) -> list[str]:
    """Return the keys of the overrides in which runs differ, in the order given."""
    given = [override_values(row.overrides) for row in rows]
    keys = dict.fromkeys(key for each in given for key in each)
    return [key for key in keys if len({each.get(key) for each in given}) > 1]


def value_of(figure: Any) -> float:
    """Return a number, or the value of an interval."""
    value: float = figure["value"] if isinstance(figure, dict) else figure
    return value
