"""What a report holds: runs as rows, scans, and what cannot be read."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lamina.depth.statistics import Statistics
from lamina.measure.tasks.figures import LOWER_IS_BETTER
from lamina.measure.tasks.files import FINAL
from lamina.runtime.console import printable

LARGEST = 2**63
"""Numbers from here on, and infinity, are no figures of a run."""

SEED = "seed="
"""The override in which the runs of one setting differ."""

HEALED = "healed_loss"
COSTS = {"train_seconds": "training (s)", "peak_memory_bytes": "peak memory"}
"""Fields of a row that are compared over seeds; of costs, with their names in tables."""

UNFINISHED = ("missing", "running", "requeued")
"""A job's status while the sweep may still run it."""


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """A run, as tables and the page show it. JSON can hold it, and no text has control characters.

    Losses are in nats per token; a figure that was not measured is None.
    """

    name: str
    """Its run name; without one, the overrides that distinguish it or its folder's name."""
    folder: str
    sweep: str | None = None
    """Folder of the sweep whose job it is."""
    status: str
    """completed, running, failed, interrupted or requeued; missing without a result, or damaged."""
    error: str | None = None
    overrides: list[str] = field(default_factory=list)
    own: list[str] = field(default_factory=list)
    """The overrides that distinguish it from the sweep's other jobs."""
    model_type: str | None = None
    kept_layers: list[int] | None = None
    dropped_layers: list[int] | None = None
    layers: int | None = None
    """Layers that stay, of `num_layers`."""
    num_layers: int | None = None
    adapter: str | None = None
    selector: str | None = None
    backend: str | None = None
    seed: int | None = None
    parameters: int | None = None
    bytes: int | None = None
    """Of the weights, in the type of final/."""
    trainable_parameters: int | None = None
    baseline_loss: float | None = None
    reduced_loss: float | None = None
    healed_loss: float | None = None
    healed_stderr: float | None = None
    """Its standard error over the rows in eval.jsonl, the first 200."""
    difference: float | None = None
    """The healed loss minus that of the original."""
    perplexity: float | None = None
    recovered: float | None = None
    """Share of the loss that removal cost and healing won back; negative if it rose further."""
    tokens_per_second: float | None = None
    train_seconds: float | None = None
    peak_memory_bytes: int | None = None
    trained_tokens: int | None = None
    """Those with a label; older results lack it."""
    rounds: str | None = None
    """Of a ladder: each round's layers, healed loss and trained tokens."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Of each logged step: step, tokens, loss, learning_rate, eval_loss; None if not logged."""
    samples: list[dict[str, str | None]] = field(default_factory=list)
    """prompt, expected, before, after."""
    config: dict[str, Any] = field(default_factory=dict)
    """Settings by their config key, and overrides."""
    provenance: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, dict[str, dict[str, dict[str, Any]]]] = field(default_factory=dict)
    """By task, metric and role: value, stderr, n, chance."""
    comparisons: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """By task and metric: the final model against the original."""
    standings: dict[str, dict[str, str]] = field(default_factory=dict)
    """By task and metric: best, or within noise of the best run on the same items."""
    speed: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By role."""
    decode_tokens_per_second: float | None = None
    """Of the final model, at the size and on the device that most runs measured."""
    eval_fingerprint: str | None = None
    """Identifies the rows on which its losses were measured."""
    rank: int | None = None
    """Its place among the completed runs by healed loss, from 1."""
    is_best: bool = False
    seed_spread: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of the sweep's runs that differ from it only in their seed, and it: runs, mean, spread (the
    standard deviation), half_width (of the mean's 95 % interval) and standing (among the sweep's
    other settings) of the healed loss, of each TASK/METRIC of the final model, and of the costs."""
    within_noise_of_best: bool | None = None
    """By the paired losses in eval.jsonl; None where they are unknown, or of other rows."""

    @property
    def job(self) -> str:
        """The name of its folder: Hydra's job number in a sweep."""
        return Path(self.folder).name

    @property
    def is_complete(self) -> bool:
        """Whether it completed."""
        return self.status == "completed"

    def figure(self, task: str, metric: str, role: str = FINAL) -> dict[str, Any]:
        """Return a figure (value, stderr, n, chance); empty if it was not measured."""
        return self.tasks.get(task, {}).get(metric, {}).get(role) or {}


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A scan's scores."""

    folder: str
    statistics: Statistics
    provenance: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that tables, charts and the page show."""

    title: str
    made_at: str
    """ISO 8601, UTC."""
    rows: list[RunRow]
    """In the order of their folders; `ranked` sorts them."""
    scans: list[Scan]
    broken: list[tuple[str, str]]
    """Files that cannot be read, and why."""

    @property
    def done_jobs(self) -> int:
        """Runs that have ended, in whatever way."""
        return sum(row.status not in UNFINISHED for row in self.rows)

    @property
    def is_finished(self) -> bool:
        """Whether no run is still to come."""
        return self.done_jobs == len(self.rows)

    @property
    def ranked(self) -> list[RunRow]:
        """The rows by healed loss; those without a rank come last."""
        return sorted(self.rows, key=lambda row: math.inf if row.rank is None else row.rank)

    @property
    def provenances(self) -> list[dict[str, Any]]:
        """What each run and scan was made with."""
        return [row.provenance for row in self.ranked] + [scan.provenance for scan in self.scans]


def is_lower_better(rows: Iterable[RunRow], task: str, metric: str) -> bool:
    """Return whether less of a metric is better: as lm-eval says, or by its name."""
    said = {row.figure(task, metric).get("higher_is_better") for row in rows} - {None}
    return False in said or (not said and metric.endswith(LOWER_IS_BETTER))


def override_values(overrides: Iterable[str]) -> dict[str, str]:
    """Return the values of overrides by their keys."""
    pairs = (override.lstrip("+").partition("=") for override in overrides)
    return {key: value for key, _, value in pairs}


def without_seed(overrides: Iterable[str]) -> list[str]:
    """Return overrides but the seed's."""
    return [override for override in overrides if not override.startswith(SEED)]


def clean(value: Any) -> Any:
    """Return what a row may hold: printable texts; numbers out of range become None."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, int | float):
        return value if abs(value) < LARGEST else None  # NaN, too
    if isinstance(value, Mapping):
        return {printable(key): clean(item) for key, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, list | tuple) else value
