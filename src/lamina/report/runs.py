"""Runs, sweeps and scans as a report's rows, read from the files that they wrote."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lamina.depth.statistics import Statistics
from lamina.errors import ConfigError, ModelError
from lamina.measure.results import (
    MULTIRUN_FILE,
    RESULT_FILE,
    SCAN_FILE,
    distinguishing,
    load_result,
)
from lamina.runtime.console import printable
from lamina.weights.source import made_of, read_json, refuse_mistyped

HEALING = "healing"
"""The sweep's folder in that of `lamina shortlist`, which is a scan's."""

UNFINISHED = ("missing", "running", "requeued")
"""A job's status while the sweep may still run it."""

MOST_LAYERS = 100_000

DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}

SAMPLE = dict.fromkeys(("prompt", "expected", "before", "after"), str | None)
LOGGED = dict.fromkeys(("step", "tokens", "loss", "learning_rate", "eval_loss"), int | float | None)

Planned = Callable[[Path], Sequence[Sequence[str]]]
"""Returns the overrides of each job of a sweep; raises ModelError if its file is damaged."""


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """A run, as tables and the page show it. JSON can hold it, and no text has control characters.

    Losses are in nats per token; a figure that was not measured is None.
    """

    name: str
    """Its run name; without one, the overrides that distinguish it or its folder's name."""
    folder: str
    sweep: str | None
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
    difference: float | None = None
    """The healed loss minus that of the original."""
    perplexity: float | None = None
    recovered: float | None = None
    """Share of the loss that removal cost and healing won back; negative if it rose further."""
    tokens_per_second: float | None = None
    train_seconds: float | None = None
    peak_memory_bytes: int | None = None
    trained_tokens: int | None = None
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
    speed: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By role."""
    decode_tokens_per_second: float | None = None
    eval_fingerprint: str | None = None
    """Identifies the rows on which its losses were measured."""
    rank: int | None = None
    """Its place among the completed runs by healed loss, from 1."""
    is_best: bool = False
    within_noise_of_best: bool | None = None
    """None if the best run has no loss on the same rows."""

    @property
    def job(self) -> str:
        """The name of its folder: Hydra's job number in a sweep."""
        return Path(self.folder).name

    @property
    def is_complete(self) -> bool:
        """Whether it completed."""
        return self.status == "completed"

    def to_dict(self) -> dict[str, Any]:
        """Return its fields by name."""
        return asdict(self)


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
    def planned_jobs(self) -> int:
        """Runs that there are or will be."""
        return len(self.rows)

    @property
    def done_jobs(self) -> int:
        """Runs that have ended, in whatever way."""
        return sum(row.status not in UNFINISHED for row in self.rows)

    @property
    def is_finished(self) -> bool:
        """Whether no run is still to come."""
        return self.done_jobs == self.planned_jobs

    @property
    def ranked(self) -> list[RunRow]:
        """The rows by healed loss; those without a rank come last."""
        return sorted(self.rows, key=lambda row: math.inf if row.rank is None else row.rank)


def read_report(folders: Sequence[Path], planned: Planned | None = None) -> Report:
    """Read runs, sweeps and scans; what cannot be read is listed.

    `planned` says which jobs of a sweep are missing. Raises ConfigError for a folder that holds
    nothing of Lamina's.
    """
    reader = _Reader(planned or (lambda _: ()))
    for folder in dict.fromkeys(map(Path.absolute, folders)):
        reader.read(folder)
    rows = list(_with_ranks(reader.rows))
    title = ", ".join(printable(folder.absolute().name) for folder in folders)
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    return Report(title=title, made_at=made_at, rows=rows, scans=reader.scans, broken=reader.broken)


class _Reader:
    """Collects what folders hold."""

    def __init__(self, planned: Planned) -> None:
        self.planned = planned
        self.rows: list[RunRow] = []
        self.scans: list[Scan] = []
        self.broken: list[tuple[str, str]] = []

    def read(self, folder: Path) -> None:
        """Read what a folder holds: one run, a scan, a sweep, or a scan with a sweep in it."""
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder")
        is_scan = (folder / SCAN_FILE).exists()
        if is_scan:
            self._scan(folder)
        if (folder / RESULT_FILE).exists():
            self.rows.append(self._run(folder))
        elif is_scan:
            self._sweep(folder / HEALING)
        elif not self._sweep(folder):
            raise ConfigError(f"{folder}: holds no run, sweep or scan: pass the folder of one")

    def _sweep(self, folder: Path) -> bool:
        """Read a sweep's jobs, in their order; return whether there are any."""
        try:
            planned = self.planned(folder)
        except ModelError as error:
            planned = ()
            self._list(folder / MULTIRUN_FILE, error)
        found = {path.parent.name for path in folder.glob(f"*/{RESULT_FILE}")}
        expected = {str(number): list(overrides) for number, overrides in enumerate(planned)}
        rows = [
            self._run(folder / name, folder, expected.get(name, []))
            for name in sorted(found | expected.keys(), key=_order)
        ]
        for row, own in zip(rows, distinguishing([row.overrides for row in rows]), strict=True):
            name = row.name or " ".join(own or row.overrides) or row.job
            self.rows.append(replace(row, name=name, own=own))
        return bool(rows)

    def _run(
        self, folder: Path, sweep: Path | None = None, overrides: Sequence[str] = ()
    ) -> RunRow:
        """Read a run; a sweep gives its jobs without a result their `overrides`, and their name."""
        place: dict[str, Any] = {
            "name": "" if sweep else printable(folder.name),
            "folder": printable(str(folder)),
            "sweep": sweep and printable(str(sweep)),
        }
        given = _clean(list(overrides))
        path = folder / RESULT_FILE
        if not path.exists():
            return RunRow(**place, status="missing", overrides=given)
        try:
            with made_of(path):
                return _row(place, _clean(load_result(folder)), path)
        except ModelError as error:
            self._list(path, error)
            return RunRow(**place, status="damaged", error=self.broken[-1][1], overrides=given)

    def _scan(self, folder: Path) -> None:
        path = folder / SCAN_FILE
        try:
            with made_of(path):
                content = _clean(read_json(path))
                statistics = Statistics.from_dict(content)
                _refuse_incomplete(statistics)
                provenance = dict(content["provenance"])
        except ModelError as error:
            return self._list(path, error)
        name = printable(str(folder))
        self.scans.append(Scan(folder=name, statistics=statistics, provenance=provenance))
        return None

    def _list(self, path: Path, error: ModelError) -> None:
        reason = str(error).removeprefix(str(path)).lstrip(": ")
        self.broken.append((printable(str(path)), printable(reason.partition("\n")[0])))


def _row(place: dict[str, Any], result: dict[str, Any], path: Path) -> RunRow:
    """Make a row of result.json's content; raises any error if it is damaged."""
    metrics, settings, provenance = result["metrics"], result["settings"], result["provenance"]
    kept, total = result["kept_layers"], result["num_layers"]
    if kept is not None and not (0 < total <= MOST_LAYERS and {*kept} <= {*range(total)}):
        raise ValueError(f"kept_layers are not of {total} layers")
    refuse_mistyped(f"{path}: provenance", provenance, {"backend": str | None})
    for sample in result["samples"] or ():
        refuse_mistyped(f"{path}: samples", sample, SAMPLE)
    for entry in result["history"] or ():
        refuse_mistyped(f"{path}: history", entry, LOGGED)
    losses = [_number(metrics.get(f"{name}eval_loss")) for name in ("baseline_", "reduced_", "")]
    baseline, reduced, healed = losses
    parameters, dtype = _number(result["num_parameters"]), result["dtype"]
    known = None not in (baseline, reduced, healed) and reduced > baseline
    pairs = (override.lstrip("+").partition("=") for override in result["overrides"])
    return RunRow(
        **{**place, "name": result["name"] or place["name"]},
        status=result["status"],
        error=(result["error"] or "").partition("\n")[0] or None,
        overrides=result["overrides"],
        model_type=result["model_type"],
        kept_layers=kept,
        dropped_layers=kept and sorted({*range(total)} - {*kept}),
        layers=kept and len(kept),
        num_layers=total,
        adapter=result["adapter"],
        selector=result["selector"],
        backend=provenance.get("backend"),
        seed=result["seed"],
        parameters=parameters,
        bytes=parameters * DTYPE_BYTES[dtype] if parameters and dtype in DTYPE_BYTES else None,
        trainable_parameters=_number(result["trainable_parameters"]),
        baseline_loss=baseline,
        reduced_loss=reduced,
        healed_loss=healed,
        difference=None if None in (healed, baseline) else healed - baseline,
        perplexity=_number(metrics.get("perplexity")),
        recovered=(reduced - healed) / (reduced - baseline) if known else None,
        tokens_per_second=_number(metrics.get("tokens_per_second")),
        train_seconds=_number(metrics.get("train_seconds")),
        peak_memory_bytes=_number(metrics.get("peak_memory_bytes")),
        trained_tokens=_number(metrics.get("train_tokens")),
        history=[
            {**entry, **{key: _number(entry.get(key)) for key in LOGGED}}
            for entry in result["history"] or ()
        ],
        samples=[{key: sample.get(key) for key in SAMPLE} for sample in result["samples"] or ()],
        config={**settings, **{key: value for key, _, value in pairs}},
        provenance=provenance,
        eval_fingerprint=result["eval_fingerprint"],
    )


def _with_ranks(rows: Sequence[RunRow]) -> Iterator[RunRow]:
    """Yield the rows with the ranks of the completed ones."""
    losses = [row.healed_loss if row.is_complete else None for row in rows]
    order = sorted((loss, number) for number, loss in enumerate(losses) if loss is not None)
    ranks = {number: rank for rank, (_, number) in enumerate(order, 1)}
    for number, row in enumerate(rows):
        rank = ranks.get(number)
        yield replace(row, rank=rank, is_best=rank == 1)


def _number(value: Any) -> Any:
    """Return a number that tables can show; None for None, NaN and infinity."""
    if value is None:
        return None
    if abs(value) > 2**63 and math.isfinite(value):
        raise ValueError(f"{value} is out of range")
    return value if math.isfinite(value) else None


def _clean(value: Any) -> Any:
    """Return what JSON holds without control characters in its texts."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return value


def _refuse_incomplete(scores: Statistics) -> None:
    """Raise ValueError unless there is one number per layer."""
    one = scores.leave_one_out
    columns = (one.loss, one.stderr, one.delta_stderr, one.kl, scores.block_influence)
    for column in (*columns, scores.magnitude):
        if len([float(value) for value in column]) != scores.num_layers:
            raise ValueError(f"{len(column)} numbers for {scores.num_layers} layers")
    for start, row in enumerate(scores.angular_distance):
        if len([float(value) for value in row]) != scores.num_layers + 1 - start:
            raise ValueError(f"{len(row)} distances from layer {start}")
    float(scores.baseline_loss)


def _order(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (2**31, name)
