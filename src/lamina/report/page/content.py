"""What the page shows, as JSON can hold it: rows, charts, settings and provenance."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lamina.report.page.charts import charts
from lamina.report.page.columns import Column, columns, override_keys
from lamina.report.runs import Report, RunRow, override_values
from lamina.report.sweep_table import caveat
from lamina.report.tables import (
    PROVENANCE,
    SEEDS_NOTE,
    TASKS,
    TASKS_NOTE,
    counted_values,
    listed,
    provenance_lines,
    seed_table,
    task_lines,
)
from lamina.runtime.files import finite

MOST_POINTS = 200
"""Points of a healing curve; more cannot be told apart."""

SETTINGS, PROBLEMS = ("setting", "values (runs)"), ("run", "status", "reason")
PARTS = ("prompt", "expected", "before", "after")


def content(report: Report) -> dict[str, Any]:
    """Return what the page shows, as JSON can hold it."""
    rows = report.ranked
    shown = columns(rows)
    settings = differing([row.config for row in rows])
    keys = [key for key, _ in settings]
    found: dict[str, Any] = finite(
        {
            "progress": progress(report),
            "headline": headline(report),
            "isFinished": report.is_finished,
            "columns": [column.to_dict() for column in shown],
            "keys": override_keys(rows),
            "rows": [_row(place, row, shown, keys) for place, row in enumerate(rows)],
            "charts": charts(report),
            "tasks": TASKS,
            "tasksNote": TASKS_NOTE,
            "seeds": seed_table(rows),
            "seedsNote": SEEDS_NOTE,
            "settings": [SETTINGS, *settings],
            "problems": [PROBLEMS, *problems(report)],
            "provenance": [PROVENANCE, *provenance_lines(report.provenances)],
        }
    )
    return found


def standing(row: RunRow) -> str:
    """Return how a run stands to the best one."""
    if row.is_best:
        return "best"
    return "within noise" if row.within_noise_of_best else "other"


def _row(
    place: int, row: RunRow, shown: Sequence[Column], settings: Sequence[str]
) -> dict[str, Any]:
    """Return a row for the table and the charts, and its place among the runs."""
    dropped = row.dropped_layers or ()
    return {
        "place": place,
        "name": row.name,
        "standing": standing(row),
        "status": row.status,
        "text": " ".join([row.name, row.status, *row.overrides]).lower(),
        "values": {c.key: value for c in shown if (value := c.of(row)) is not None},
        "standings": {c.key: found for c in shown if (found := c.standing(row))},
        "layer": dropped[0] if len(dropped) == 1 else None,
        "curve": curve(row),
        "overrides": override_values(row.overrides),
        "config": {
            key: str(value) for key in settings if (value := row.config.get(key)) is not None
        },
        "tasks": list(task_lines(row)),
        "samples": [
            [[part, sample[part]] for part in PARTS if sample.get(part) is not None]
            for sample in row.samples
        ],
    }


def curve(row: RunRow) -> dict[str, list[Any]]:
    """Return the steps, tokens and losses of a run's evaluations, thinned out if there are many."""
    logged = [entry for entry in row.history if entry["eval_loss"] is not None]
    stride = -(-len(logged) // MOST_POINTS)
    kept = [entry for place, entry in enumerate(reversed(logged)) if place % stride == 0][::-1]
    if kept and row.reduced_loss is not None:
        kept = [{"step": 0, "tokens": 0, "eval_loss": row.reduced_loss}, *kept]
    names = {"step": "step", "tokens": "tokens", "loss": "eval_loss"}
    return {name: [entry[key] for entry in kept] for name, key in names.items()}


def differing(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return each key whose values differ, with the values and how many runs have them."""
    counted = counted_values(found)
    return [[key, listed(counts)] for key, counts in counted.items() if len(counts) > 1]


def progress(report: Report) -> str:
    """Return how far the runs are, in one line."""
    counts = Counter(row.status for row in report.rows)
    states = ", ".join(f"{number} {status}" for status, number in counts.most_common())
    going = "" if report.is_finished else "; the page reloads itself"
    made = report.made_at[:16].replace("T", " ")
    found = f"{len(report.rows)} runs: {states}{going}. Made {made} UTC. {caveat(report.rows)}"
    return found.rstrip()


def headline(report: Report) -> str:
    """Return the result in one line; empty if no run has one."""
    best = next((row for row in report.rows if row.is_best), None)
    if best is None or best.healed_loss is None:
        return ""
    parts = [f"healed loss {best.healed_loss:.4g}"]
    if best.difference is not None:
        parts.append(f"{best.difference:+.2g} against the original")
    if best.layers is not None:
        parts.append(f"{best.layers} of {best.num_layers} layers")
    close = sum(bool(row.within_noise_of_best) and not row.is_best for row in report.rows)
    rest = f" {close} more within noise of it." if close else ""
    return f"Best: {best.name}: {', '.join(parts)}.{rest}"


def problems(report: Report) -> list[list[str]]:
    """Return what failed, is missing or cannot be read, with its status and reason."""
    found = [
        [row.name, row.status, row.error or ""] for row in report.rows if row.status != "completed"
    ]
    return [*found, *([path, "broken", reason] for path, reason in report.broken)]
