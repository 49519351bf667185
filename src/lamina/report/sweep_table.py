"""A sweep's jobs side by side, read from the files they wrote."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lamina.measure.results import distinguishing, read_result
from lamina.runtime.files import write_text

SUMMARY = "summary"
"""Name of the summary files, without suffix."""

FIGURES = (
    "baseline_eval_loss reduced_eval_loss eval_loss perplexity tokens_per_second train_seconds "
    "peak_memory_bytes"
).split()
"""Metrics in the summary; losses are in nats per token."""

COLUMNS = ("job", "layers", "original", "reduced", "healed", "difference", "status")
"""Columns of the printed table; original is the loss of the untouched model."""

BEST = "* "
"""Marks the job with the lowest healed loss."""


@dataclass(frozen=True)
class SweepJob:
    """One job of a sweep."""

    name: str
    """Its folder in the sweep's folder: Hydra's job number."""
    own: str
    """The overrides that distinguish it from the others."""
    result: dict[str, Any]
    """Its result.json; empty if there is none."""

    @property
    def title(self) -> str:
        """The name of its run; its own overrides if it did not get that far."""
        return self.result.get("name") or self.own

    @property
    def status(self) -> str:
        """completed, failed or running; missing without a result."""
        return str(self.result.get("status", "missing"))

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of its result.json; empty if there is none."""
        metrics: dict[str, Any] = self.result.get("metrics", {})
        return metrics

    @property
    def healed(self) -> float | None:
        """Loss of final/ in nats per token."""
        return self.metrics.get("eval_loss")

    @property
    def difference(self) -> float | None:
        """The healed loss minus that of the original model."""
        baseline = self.metrics.get("baseline_eval_loss")
        return None if self.healed is None or baseline is None else self.healed - baseline

    @property
    def layers(self) -> str:
        """How many layers were kept, such as 24 of 36."""
        kept = self.result.get("kept_layers")
        return f"{len(kept)} of {self.result['num_layers']}" if kept else ""

    @property
    def backend(self) -> str:
        """The backend it trained with, possibly chosen by backend=auto."""
        return str((self.result.get("provenance") or {}).get("backend", ""))

    @property
    def error(self) -> str:
        """Why it failed, in one line; empty if it did not."""
        return str(self.result.get("error") or "").partition("\n")[0]


def read_jobs(folder: Path, planned: Sequence[Sequence[str]] = ()) -> list[SweepJob]:
    """Read the jobs of a sweep's folder, in their order.

    `planned` has the overrides of every planned job; those without a result are missing.
    """
    found = {path.parent.name for path in folder.glob("*/result.json")}
    expected = {str(number): overrides for number, overrides in enumerate(planned)}
    names = sorted(found | expected.keys(), key=_order)
    results = {name: read_result(folder / name) or {} for name in names}
    given = [results[name].get("overrides") or expected.get(name, ()) for name in names]
    return [
        SweepJob(name, " ".join(own or every), results[name])
        for name, own, every in zip(names, distinguishing(given), given, strict=True)
    ]


def write_summary(folder: Path, jobs: Sequence[SweepJob]) -> None:
    """Write summary.csv and summary.md, best job first; may raise an OutputError."""
    best = ranked(jobs)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    header = ("rank", "job", "status", "overrides", "name", "backend", "layers")
    rows.writerow([*header, *FIGURES, "difference", "error"])
    for rank, job in enumerate(best, 1):
        place = rank if job.status == "completed" else ""
        figures = [job.metrics.get(name) for name in FIGURES]
        about = (place, job.name, job.status, job.own, job.title, job.backend, job.layers)
        rows.writerow([*about, *figures, job.difference, job.error])
    write_text(folder / f"{SUMMARY}.csv", text.getvalue())
    table = [[*COLUMNS, "error"], ["---"] * (len(COLUMNS) + 1)]
    for job in best:
        cells = (*_cells(job, is_best=job is best[0]), job.error)
        table.append([cell.replace("|", "\\|") for cell in cells])
    lines = [f"| {' | '.join(cells)} |" for cells in table]
    write_text(folder / f"{SUMMARY}.md", "\n".join(lines) + "\n")


def ranked(jobs: Sequence[SweepJob]) -> list[SweepJob]:
    """Sort the jobs by healed loss; those without one come last."""
    healed = ((job.name, job.healed) for job in jobs if job.status == "completed")
    losses = {name: loss for name, loss in healed if loss is not None}
    return sorted(jobs, key=lambda job: losses.get(job.name, math.inf))


def sweep_table(jobs: Sequence[SweepJob]) -> RenderableType:
    """Return a sweep's table: one row per job, the best first, and why jobs failed."""
    table = Table(box=None, pad_edge=False)
    table.add_column(COLUMNS[0], style="bold", overflow="fold")
    for name in COLUMNS[1:]:
        table.add_column(name, justify="right")
    best = ranked(jobs)
    for job in best:
        table.add_row(*map(Text, _cells(job, is_best=job is best[0])))
    reasons = [Text(f"{job.title}: {job.error}", style="dim") for job in jobs if job.error]
    legend = [Text(f"{BEST}lowest healed loss", style="dim")] if best and best[0].healed else []
    return Group(Text(), table, *legend, *([Text(), *reasons] if reasons else []))


def _cells(job: SweepJob, *, is_best: bool) -> list[str]:
    losses = [job.metrics.get(f"{name}_eval_loss") for name in ("baseline", "reduced")]
    losses += [job.healed, job.difference] if job.status == "completed" else [None, None]
    shown = ["" if loss is None else f"{loss:.4g}" for loss in losses]
    is_best = is_best and shown[2] != ""
    return [BEST * is_best + job.title, job.layers, *shown, job.status]


def _order(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (2**31, name)
