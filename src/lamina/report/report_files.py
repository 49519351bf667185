"""Writes a report's files. Texts in report.md and report.csv are someone else's, and stay texts."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lamina.report.evidence import without_seed
from lamina.report.page.document import write_page
from lamina.report.runs import Report, RunRow, Scan
from lamina.report.scan_report import increases, least_index, scored
from lamina.report.sweep_table import COLUMNS, LEGEND, TASK_LEGEND, cells, task_columns
from lamina.runtime.console import stage
from lamina.runtime.files import write_text

MARKDOWN_FILE, TABLE_FILE = "report.md", "report.csv"

FIELDS = (
    "rank job status overrides name backend model_type layers num_layers adapter selector seed "
    "parameters bytes trainable_parameters baseline_loss reduced_loss healed_loss healed_stderr "
    "difference perplexity recovered within_noise_of_best tokens_per_second train_seconds "
    "peak_memory_bytes trained_tokens decode_tokens_per_second error folder"
).split()
"""Columns of report.csv, fields of a row; those of overrides, tasks and several seeds follow."""

COMPARED = "difference low high p retention retention_low retention_high is_within_noise".split()
"""Fields of a comparison that are columns."""

TASKS = (
    *("run", "task", "metric", "n", "original", "final", "95 %", "p", "retention"),
    *("against original", "among runs"),
)
TASK_NOTES = (
    "95 %: of final minus original, a bootstrap interval over the same items; p: McNemar's exact "
    "test. The retention of a loss is that of a token's probability."
)

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
    for key, _, value in (override.lstrip("+").partition("=") for override in row.own):
        if key not in FIELDS:
            yield key, value
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
        yield f"{name} of seeds: mean", found["mean"]
        yield f"{name} of seeds: spread", found["spread"]


def _cell(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula."""
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if is_formula else value


def markdown(report: Report) -> str:
    """Return a report's tables as Markdown."""
    ranked, wrong = report.ranked, [row for row in report.rows if not row.is_complete]
    spreads = {
        (" ".join(without_seed(row.own)), figure): found
        for row in ranked
        for figure, found in row.seed_spread.items()
    }
    tasks = task_columns(ranked)
    tables: dict[str, tuple[Sequence[str], Sequence[Sequence[str]], str]] = {
        "Runs": (
            [*COLUMNS, *tasks, "status"],
            [[*cells(row, tasks).values()] for row in ranked],
            LEGEND + TASK_LEGEND * bool(tasks),
        ),
        "Tasks": (TASKS, [line for row in ranked for line in _tasks(row)], TASK_NOTES),
        "Between seeds": (
            ("runs", "figure", "seeds", "mean", "standard deviation"),
            [
                (*key, f"{found['runs']}", f"{found['mean']:.4g}", f"{found['spread']:.2g}")
                for key, found in spreads.items()
            ],
            "",
        ),
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
        "Made with": (("", ""), list(_provenance(report.rows)), ""),
    }
    parts = [f"# {_escaped(report.title)}", _state(report)]
    for title, (header, lines, notes) in tables.items():
        if lines:
            parts += [f"## {title}", _table(header, lines), *([_escaped(notes)] if notes else [])]
    return "\n\n".join(parts) + "\n"


def _state(report: Report) -> str:
    ended = f"{report.done_jobs} of {report.planned_jobs} runs have ended"
    rows = {row.eval_fingerprint for row in report.rows if row.rank}
    differ = " Their losses were measured on different rows: they do not compare." * (len(rows) > 1)
    return f"{ended}; made at {report.made_at}.{differ}"


def _tasks(row: RunRow) -> Iterator[Sequence[str]]:
    """Yield a line for each metric of each task."""
    for task, metrics in row.tasks.items():
        for metric, roles in metrics.items():
            compared = row.comparisons.get(task, {}).get(metric, {})
            original, final = (_with_error(roles.get(role)) for role in ("original", "final"))
            if not compared:
                *_, last = roles.values()
                yield row.name, task, metric, str(last["n"]), original, _with_error(last), *[""] * 5
                continue
            low, high, p = compared["low"], compared["high"], compared["p"]
            interval = f"{low:+.4g} to {high:+.4g}"
            kept = _percents(*(compared[f"retention{end}"] for end in ("", "_low", "_high")))
            noise = "within noise" if compared["is_within_noise"] else ""
            given = "" if p is None else f"{p:.2g}"
            size = str(compared["n"])
            place = row.standings.get(task, {}).get(metric, "")
            about = (interval, given, kept, noise, place)
            yield row.name, task, metric, size, original, final, *about


def _with_error(figure: dict[str, Any] | None) -> str:
    if figure is None or figure["value"] is None:
        return ""
    error = "" if figure["stderr"] is None else f" ± {figure['stderr']:.2g}"
    chance = "" if figure["chance"] is None else f" (chance {figure['chance']:.3g})"
    return f"{figure['value']:.4g}{error}{chance}"


def _percents(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return ""
    interval = "" if low is None or high is None else f" ({low:.3g} to {high:.3g})"
    return f"{value:.3g} %{interval}"


def _scan(scan: Scan) -> Sequence[str]:
    rises = increases(scan.statistics)
    layer = least_index(rises)
    return scan.folder, scored(scan.statistics), str(layer), f"{rises[layer]:+.3g}"


def _provenance(rows: Iterable[RunRow]) -> Iterator[Sequence[str]]:
    """Yield what runs were made with; several values where they differ."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        versions = row.provenance.get("versions")
        given = {**row.provenance, **(versions if isinstance(versions, dict) else {})}
        for name, value in given.items():
            if isinstance(value, str):
                found.setdefault(name, {})[value] = None
    return ((name, ", ".join(values)) for name, values in found.items())


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    names, *rows = ([_escaped(cell) for cell in line] for line in (header, *lines))
    rule = ["---"] * len(names)
    return "\n".join(f"| {' | '.join(row)} |" for row in (names, rule, *rows))


def _escaped(text: str) -> str:
    """Return a text in one line, without markup."""
    return MARKUP.sub(r"\\\g<0>", " ".join(text.split()))
