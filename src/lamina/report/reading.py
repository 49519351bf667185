"""Reads runs, sweeps, scans and evaluations into a report, without torch."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from hashlib import sha256
from os.path import commonpath
from pathlib import Path
from typing import Any

from lamina.depth.statistics import Statistics
from lamina.errors import ConfigError, LaminaError, ModelError
from lamina.measure.comparison import Evaluated, load_evaluation
from lamina.measure.results import (
    MULTIRUN_FILE,
    RESULT_FILE,
    ROUND,
    SCAN_FILE,
    distinguishing,
    load_result,
)
from lamina.measure.tasks.files import (
    EVALUATION_FILE,
    EVALUATION_FOLDER,
    FINAL,
    ITEMS_FILE,
    ORIGINAL,
    ROLES,
    EvaluationResult,
    read_evaluation,
)
from lamina.report.evidence import (
    with_comparisons,
    with_decoding,
    with_noise,
    with_spread,
    with_standings,
    with_tasks,
)
from lamina.report.runs import Report, RunRow, Scan, clean, override_values
from lamina.runtime.console import printable, stage
from lamina.runtime.files import disk_errors
from lamina.weights.source import made_of, read_json, refuse_mistyped

HEALING = "healing"
"""The sweep's folder in that of `lamina shortlist`, which is a scan's."""

MOST_LAYERS = 100_000

DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}

COPIED = (
    "status overrides model_type kept_layers num_layers adapter selector seed trainable_parameters "
    "eval_fingerprint"
).split()
OF_METRICS = "perplexity tokens_per_second train_seconds peak_memory_bytes trained_tokens".split()
"""Fields of a row that result.json or its metrics have under the same name."""

SAMPLE = dict.fromkeys(("prompt", "expected", "before", "after"), str | None)
LOGGED = dict.fromkeys(("step", "tokens", "loss", "learning_rate", "eval_loss"), int | float | None)

Planned = Callable[[Path], Sequence[Sequence[str]]]
"""Returns the overrides of each job of a sweep; raises ModelError if its file is damaged."""


@stage("reading the runs")
def read_report(folders: Sequence[Path], planned: Planned | None = None) -> Report:
    """Read runs, sweeps and scans; what cannot be read is listed.

    `planned` says which jobs of a sweep are missing. Raises ConfigError for a folder that holds
    nothing of Lamina's.
    """
    reader = _Reader(planned or (lambda _: ()))
    for folder in map(Path.absolute, folders):
        reader.read(folder)
    rows = [
        with_tasks(row, found) if found else row
        for row, found in zip(reader.rows, reader.evaluations, strict=True)
    ]
    rows = [*_with_ranks([*_distinct(rows, reader.folders)])]
    rows = [*with_decoding(rows, reader.evaluations, reader.list)]
    rows = [*with_comparisons(rows, reader.evaluations, reader.list)]
    rows = [*with_standings(rows, reader.evaluations, reader.list)]
    rows = [*with_noise(rows, reader.folders, reader.list)]
    rows = [*with_spread(rows, reader.evaluations)]
    title = ", ".join(printable(folder.absolute().name) for folder in folders)
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    return Report(title=title, made_at=made_at, rows=rows, scans=reader.scans, broken=reader.broken)


class _Reader:
    """Collects what folders hold."""

    def __init__(self, planned: Planned) -> None:
        self.planned = planned
        self.rows: list[RunRow] = []
        self.folders: list[Path] = []
        """Of the rows."""
        self.seen: set[Path] = set()
        """Folders that were read; the same ones may be given twice."""
        self.evaluations: list[dict[str, Evaluated]] = []
        """Of the rows, by role."""
        self.originals: dict[str, Evaluated] = {}
        """By the hash of their items."""
        self.scans: list[Scan] = []
        self.broken: list[tuple[str, str]] = []

    def read(self, folder: Path) -> None:
        """Read what a folder holds: one run, a scan, a sweep, or a scan with a sweep in it."""
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder")
        if self._is_read(folder):
            return
        is_scan = (folder / SCAN_FILE).exists()
        if is_scan:
            self._scan(folder)
        if (folder / RESULT_FILE).exists():
            self._append(folder, self._run(folder))
        elif (folder / EVALUATION_FILE).exists():
            self._evaluation(folder)
        elif is_scan:
            self._sweep(folder / HEALING)
        elif not self._sweep(folder):
            what = "run, sweep, scan or evaluation"
            raise ConfigError(f"{folder}: holds no {what}: pass the folder of one")

    def _is_read(self, folder: Path) -> bool:
        """Whether a folder was read before, and remember that it is now."""
        place = folder.resolve()
        is_read = place in self.seen
        self.seen.add(place)
        return is_read

    def _append(self, folder: Path, row: RunRow) -> None:
        self.rows.append(row)
        self.folders.append(folder)
        places = {role: folder / EVALUATION_FOLDER / role for role in ROLES}
        found = {role: self._evaluated(place, role) for role, place in places.items()}
        self.evaluations.append({role: each for role, each in found.items() if each})

    def _evaluated(self, folder: Path, role: str) -> Evaluated | None:
        """Read an evaluation; without its items if those are damaged, or not compared."""
        if not (folder / EVALUATION_FILE).exists():
            return None
        result = None
        try:
            result = read_evaluation(folder)
            if role == ORIGINAL:
                return self._original(folder, result)
            if role == FINAL:
                return load_evaluation(folder, result)
        except LaminaError as error:
            self.list(folder / (ITEMS_FILE if result else EVALUATION_FILE), error)
        return Evaluated(folder, result, {}) if result else None

    def _original(self, folder: Path, result: EvaluationResult) -> Evaluated:
        """Read the items of the original once for all jobs of a sweep, which have the same ones."""
        path = folder / ITEMS_FILE
        with disk_errors(path):
            content = path.read_bytes() if path.is_file() else b""
        sizes = {name: task.items for name, task in result.tasks.items()}
        key = f"{sha256(content).hexdigest()} {sizes}"
        if key not in self.originals:
            self.originals[key] = load_evaluation(folder, result)
        return replace(self.originals[key], path=folder, result=result)

    def _evaluation(self, folder: Path) -> None:
        """Read what `lamina evaluate` wrote: its model stands beside those that runs made."""
        place: dict[str, Any] = {"name": printable(folder.name), "folder": printable(str(folder))}
        if (found := self._evaluated(folder, FINAL)) is None:
            self.rows.append(RunRow(**place, status="damaged", error=self.broken[-1][1]))
        else:
            model = clean(asdict(found.result.model))
            shown = {key: model[key] for key in ("kept_layers", "layers", "parameters")}
            shown["name"] = f"{place['name']}: {model['name']}"
            self.rows.append(RunRow(**{**place, **shown}, status="completed"))
        self.folders.append(folder)
        self.evaluations.append({FINAL: found} if found else {})

    def _sweep(self, folder: Path) -> bool:
        """Read a sweep's jobs, in their order; return whether there are any."""
        try:
            planned = self.planned(folder)
        except ModelError as error:
            planned = ()
            self.list(folder / MULTIRUN_FILE, error)
        found = {path.parent.name for path in folder.glob(f"*/{RESULT_FILE}")}
        expected = {str(number): list(overrides) for number, overrides in enumerate(planned)}
        jobs = sorted(found | expected.keys(), key=_order)
        rows = [self._run(folder / job, folder, expected.get(job, [])) for job in jobs]
        owns = distinguishing([row.overrides for row in rows])
        for job, row, own in zip(jobs, rows, owns, strict=True):
            name = row.name or " ".join(own or row.overrides) or row.job
            if not self._is_read(folder / job):
                self._append(folder / job, replace(row, name=name, own=own))
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
        given = clean(list(overrides))
        path = folder / RESULT_FILE
        if not path.exists():
            return RunRow(**place, status="missing", overrides=given)
        try:
            with made_of(path):
                return _row(place, clean(load_result(folder)), path)
        except ModelError as error:
            self.list(path, error)
            return RunRow(**place, status="damaged", error=self.broken[-1][1], overrides=given)

    def _scan(self, folder: Path) -> None:
        path = folder / SCAN_FILE
        try:
            with made_of(path):
                content = clean(read_json(path))
                statistics = Statistics.from_dict(content)
                _refuse_incomplete(statistics)
                provenance = dict(content["provenance"])
        except ModelError as error:
            return self.list(path, error)
        name = printable(str(folder))
        self.scans.append(Scan(folder=name, statistics=statistics, provenance=provenance))
        return None

    def list(self, path: Path, error: LaminaError) -> None:
        """List a file that cannot be used, and why."""
        reason = str(error).removeprefix(str(path)).lstrip(":, ")
        self.broken.append((printable(str(path)), printable(reason.partition("\n")[0])))


def _row(place: dict[str, Any], result: dict[str, Any], path: Path) -> RunRow:
    """Make a row of result.json's content; raises any error if it is damaged."""
    metrics, settings, provenance = result["metrics"], result["settings"], result["provenance"]
    kept, total = result["kept_layers"], result["num_layers"]
    if kept is not None and not (0 < total <= MOST_LAYERS and {*kept} <= {*range(total)}):
        raise ValueError(f"kept_layers are not of {total} layers")
    refuse_mistyped(f"{path}: provenance", provenance, {"backend": str | None})
    for field, types in (("samples", SAMPLE), ("history", LOGGED), ("rounds", ROUND)):
        for entry in result[field] or ():
            refuse_mistyped(f"{path}: {field}", entry, types)
    losses = [metrics.get(f"{name}eval_loss") for name in ("baseline_", "reduced_", "")]
    baseline, reduced, healed = losses
    parameters, dtype = result["num_parameters"], result["dtype"]
    known = None not in losses and reduced > baseline
    return RunRow(
        **{**place, "name": result["name"] or place["name"]},
        **{name: result[name] for name in COPIED},
        **{name: metrics.get(name) for name in OF_METRICS},
        error=(result["error"] or "").partition("\n")[0] or None,
        dropped_layers=kept and sorted({*range(total)} - {*kept}),
        layers=None if kept is None else len(kept),
        backend=provenance.get("backend"),
        parameters=parameters,
        bytes=parameters * DTYPE_BYTES[dtype] if parameters and dtype in DTYPE_BYTES else None,
        baseline_loss=baseline,
        reduced_loss=reduced,
        healed_loss=healed,
        difference=None if None in (healed, baseline) else healed - baseline,
        recovered=(reduced - healed) / (reduced - baseline) if known else None,
        rounds="; ".join(_round(entry) for entry in result["rounds"] or ()) or None,
        history=[
            {key: entry.get(key) for key in LOGGED}
            for entry in result["history"] or ()
            if entry.get("step") is not None
        ],
        samples=[{key: sample.get(key) for key in SAMPLE} for sample in result["samples"] or ()],
        config={**settings, **override_values(result["overrides"])},
        provenance=provenance,
    )


def _round(entry: dict[str, Any]) -> str:
    """Return a ladder's round in words."""
    loss = "no loss" if entry["eval_loss"] is None else f"{entry['eval_loss']:.4g}"
    return f"{len(entry['kept_layers'])} layers: {loss}, {entry['trained_tokens']:,} tokens"


def _distinct(rows: Sequence[RunRow], folders: Sequence[Path]) -> Iterator[RunRow]:
    """Yield the rows; of several with one name, each is told apart by its folder."""
    named: dict[str, list[Path]] = defaultdict(list)
    for row, folder in zip(rows, folders, strict=True):
        named[row.name].append(folder)
    for row, folder in zip(rows, folders, strict=True):
        same = named[row.name]
        if len(same) == 1:
            yield row
        else:
            place = printable(str(folder.relative_to(commonpath(same))))
            yield replace(row, name=f"{row.name} ({place})")


def _with_ranks(rows: Sequence[RunRow]) -> Iterator[RunRow]:
    """Yield the rows with the ranks of the completed ones."""
    losses = [row.healed_loss if row.is_complete else None for row in rows]
    order = sorted((loss, number) for number, loss in enumerate(losses) if loss is not None)
    ranks = {number: rank for rank, (_, number) in enumerate(order, 1)}
    for number, row in enumerate(rows):
        rank = ranks.get(number)
        yield replace(row, rank=rank, is_best=rank == 1)


def _refuse_incomplete(scores: Statistics) -> None:
    """Raise ValueError unless there is one number per layer."""
    if scores.num_layers < 1:
        raise ValueError("no layers")
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
    return (int(name), "") if name.isdecimal() else (2**31, name)
