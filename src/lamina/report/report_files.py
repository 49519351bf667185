"""Writes a report's files. Texts in report.md and report.csv are someone else's, and stay texts."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lamina.report.page.document import write_page
from lamina.report.runs import Report, RunRow, Scan, override_values
from lamina.report.scan_report import increases, least_index, scored
from lamina.report.sweep_table import (
    COLUMNS,
    LEGEND,
    TASK_LEGEND,
    caveat,
    cells,
    task_columns,
)
from lamina.report.tables import (
    PROVENANCE,
    SEEDS_NOTE,
    TASKS,
    TASKS_NOTE,
    provenance_lines,
    seed_table,
    task_lines,
)
from lamina.runtime.console import stage
from lamina.runtime.files import write_text

MARKDOWN_FILE, TABLE_FILE = "report.md", "report.csv"

FIELDS = (
    "rank job status overrides name backend model_type layers num_layers adapter selector seed "
    "parameters bytes trainable_parameters baseline_loss reduced_loss healed_loss healed_stderr "
    "difference perplexity recovered within_noise_of_best tokens_per_second train_seconds "
    "peak_memory_bytes trained_tokens rounds decode_tokens_per_second error folder"
).split()
"""Columns of report.csv, fields of a row; those of overrides, tasks and several seeds follow."""

COMPARED = "difference low high p retention retention_low retention_high is_within_noise".split()
"""Fields of a comparison that are columns."""

OVER_SEEDS = ("mean", "spread", "half_width", "standing")
"""Fields of a figure's spread over seeds that are columns."""

MARKUP = re.compile(r"[\\`*_\[\]<>|~&#!$]|(?<=:)/(?=/)|(?<=www)\.")
"""What would be markup or a link."""


@stage("writing the report")
def write_report(report: Report, folder: Path) -> None:
    """Write a report into a folder; may raise an OutputError."""
    write_text(folder / TABLE_FILE, table(report))
    write_text(folder / MARKDOWN_FILE, markdown(report))
    write_page(report, folder)


def table(report: Report) -> str:
    """Return one line per run as CSV, the best first, with all figures in full precision."""
    lines = [dict(figures(row)) for row in report.ranked]
    names = list(dict.fromkeys([*FIELDS, *(name for line in lines for name in line)]))
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(map(_cell, names))
    rows.writerows([_cell(line.get(name)) for name in names] for line in lines)
    return text.getvalue()


def figures(row: RunRow) -> Iterator[tuple[str, Any]]:
    """Yield a run's columns and their values."""
    fields = {name: getattr(row, name) for name in FIELDS if name != "overrides"}
    yield from {**fields, "overrides": " ".join(row.own or row.overrides)}.items()
    yield from ((key, v) for key, v in override_values(row.own).items() if key not in FIELDS)
    for task, metrics in row.tasks.items():
        for metric, roles in metrics.items():
            for role, figure in roles.items():
                yield f"{task}/{metric} {role}", figure["value"]
                yield f"{task}/{metric} {role} stderr", figure["stderr"]
            if place := row.standings.get(task, {}).get(metric):
                yield f"{task}/{metric} standing", place
            compared = row.comparisons.get(task, {}).get(metric)
            for name in COMPARED if compared else ():
                yield f"{task}/{metric} {name}", row.comparisons[task][metric][name]
    for name, found in row.seed_spread.items():
        for key in OVER_SEEDS:
            yield f"{name} of seeds: {key}", found[key]


def _cell(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula."""
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if is_formula else value


def markdown(report: Report) -> str:
    """Return a report's tables as Markdown."""
    ranked, wrong = report.ranked, [row for row in report.rows if not row.is_complete]
    tasks = task_columns(ranked)
    seeds, *settings = seed_table(ranked)
    tables: dict[str, tuple[Sequence[str], Sequence[Sequence[str]], str]] = {
        "Runs": (
            [*COLUMNS, *tasks, "status"],
            [[*cells(row, tasks).values()] for row in ranked],
            LEGEND + TASK_LEGEND * bool(tasks),
        ),
        "Tasks": (
            ("run", *TASKS),
            [[row.name, *line] for row in ranked for line in task_lines(row)],
            TASKS_NOTE,
        ),
        "Over seeds": (seeds, settings, SEEDS_NOTE),
        "Scans": (
            ("folder", "scored", "cheapest layer", "increase of the loss"),
            [_scan(scan) for scan in report.scans],
            "",
        ),
        "Not completed": (
            ("run", "status", "reason"),
            [(row.name, row.status, row.error or "") for row in wrong],
            "",
        ),
        "Files that cannot be used": (("file", "reason"), report.broken, ""),
        "Made with": (PROVENANCE, [*provenance_lines(report.provenances)], ""),
    }
    parts = [f"# {_escaped(report.title)}", _state(report)]
    for title, (header, lines, notes) in tables.items():
        if lines:
            parts += [
                f"## {title}",
                markdown_table(header, lines),
                *([_escaped(notes)] if notes else []),
            ]
    return "\n\n".join(parts) + "\n"


def _state(report: Report) -> str:
    ended = f"{report.done_jobs} of {len(report.rows)} runs have ended"
    return f"{ended}; made at {report.made_at}. {caveat(report.rows)}".rstrip()


def _scan(scan: Scan) -> Sequence[str]:
    rises = increases(scan.statistics)
    layer = least_index(rises)
    return scan.folder, scored(scan.statistics), str(layer), f"{rises[layer]:+.3g}"


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown; its texts stay texts."""
    names, *rows = ([_escaped(cell) for cell in line] for line in (header, *lines))
    rule = ["---"] * len(names)
    return "\n".join(f"| {' | '.join(row)} |" for row in (names, rule, *rows))


def _escaped(text: str) -> str:
    """Return a text in one line, without markup."""
    return MARKUP.sub(r"\\\g<0>", " ".join(text.split()))
