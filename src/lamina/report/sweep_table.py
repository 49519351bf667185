"""Runs side by side: a sweep's table in the console, and its summary as files."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lamina.report.runs import Report, RunRow
from lamina.runtime.files import write_text

SUMMARY = "summary"
"""Name of the summary files, without suffix."""

FIGURES = {
    "baseline_eval_loss": "baseline_loss",
    "reduced_eval_loss": "reduced_loss",
    "eval_loss": "healed_loss",
    **{
        name: name
        for name in "perplexity tokens_per_second train_seconds peak_memory_bytes".split()
    },
}
"""Columns of figures in the summary, and the fields of their rows; losses in nats per token."""

COLUMNS = ("job", "layers", "original", "reduced", "healed", "difference", "status")
"""Columns of the printed table; original is the loss of the untouched model."""

BEST = "* "
"""Marks the run with the lowest healed loss."""


def write_summary(folder: Path, report: Report) -> None:
    """Write summary.csv and summary.md, best job first; may raise an OutputError."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    header = ("rank", "job", "status", "overrides", "name", "backend", "layers")
    lines.writerow([*header, *FIGURES, "difference", "error"])
    for row in report.ranked:
        own = " ".join(row.own or row.overrides)
        about = (row.rank, row.job, row.status, own, row.name, row.backend, layers(row))
        figures = [getattr(row, name) for name in FIGURES.values()]
        lines.writerow([*about, *figures, row.difference, row.error])
    write_text(folder / f"{SUMMARY}.csv", text.getvalue())
    table = [[*COLUMNS, "error"], ["---"] * (len(COLUMNS) + 1)]
    for row in report.ranked:
        table.append([cell.replace("|", "\\|") for cell in (*_cells(row), row.error or "")])
    shown = [f"| {' | '.join(cells)} |" for cells in table]
    write_text(folder / f"{SUMMARY}.md", "\n".join(shown) + "\n")


def sweep_table(rows: Sequence[RunRow]) -> RenderableType:
    """Return a sweep's table: one row per job, the best first, and why jobs failed."""
    table = Table(box=None, pad_edge=False)
    table.add_column(COLUMNS[0], style="bold", overflow="fold")
    for name in COLUMNS[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*map(Text, _cells(row)))
    reasons = [Text(f"{row.name}: {row.error}", style="dim") for row in rows if row.error]
    has_best = any(row.is_best for row in rows)
    legend = [Text(f"{BEST}lowest healed loss", style="dim")] if has_best else []
    return Group(Text(), table, *legend, *([Text(), *reasons] if reasons else []))


def layers(row: RunRow) -> str:
    """Return how many layers were kept, such as 24 of 36."""
    return f"{row.layers} of {row.num_layers}" if row.layers else ""


def _cells(row: RunRow) -> list[str]:
    healed = [row.healed_loss, row.difference] if row.is_complete else [None, None]
    losses = [row.baseline_loss, row.reduced_loss, *healed]
    shown = ["" if loss is None else f"{loss:.4g}" for loss in losses]
    return [BEST * row.is_best + row.name, layers(row), *shown, row.status]
