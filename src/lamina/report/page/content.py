"""What the page shows, as JSON can hold it: rows, charts, settings and provenance."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lamina.report.evidence import without_seed
from lamina.report.page.charts import charts
from lamina.report.page.columns import Column, Z, columns, override_keys, overrides
from lamina.report.runs import Report, RunRow
from lamina.runtime.files import finite

MOST_POINTS = 200
"""Points of a healing curve; more cannot be told apart."""

MOST_VALUES = 12
"""Distinct values of a setting that are listed."""

ROLES = ("original", "reduced", "final")
PARTS = ("prompt", "expected", "before", "after")


def content(report: Report) -> dict[str, Any]:
    """Return what the page shows, as JSON can hold it."""
    rows = report.ranked
    shown = columns(rows)
    settings = differing([row.config for row in rows])
    keys = [key for key, _ in settings]
    provenance = [row.provenance for row in rows] + [scan.provenance for scan in report.scans]
    found: dict[str, Any] = finite(
        {
            "progress": progress(report),
            "headline": headline(report),
            "isFinished": report.is_finished,
            "columns": [column.to_dict() for column in shown],
            "keys": override_keys(rows),
            "rows": [_row(place, row, shown, keys) for place, row in enumerate(rows)],
            "charts": charts(report),
            "seeds": between_seeds(rows),
            "settings": settings,
            "problems": problems(report),
            "provenance": origins([flat(each) for each in provenance]),
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
        "layer": dropped[0] if len(dropped) == 1 else None,
        "curve": curve(row),
        "overrides": overrides(row),
        "config": {key: text for key in settings if (text := _text(row.config.get(key)))},
        "tasks": list(task_lines(row)),
        "samples": [
            [[part, sample[part]] for part in PARTS if sample.get(part) is not None]
            for sample in row.samples
        ],
    }


def task_lines(row: RunRow) -> Iterator[list[str]]:
    """Yield a line per task and metric: each role's figure, and the final one's comparison."""
    for task, metrics in row.tasks.items():
        for metric, roles in metrics.items():
            found = row.comparisons.get(task, {}).get(metric) or {}
            chance = next((_figure({"value": role["chance"]}) for role in roles.values()), "")
            compared = ["", "", ""]
            if found:
                kept = found["retention"]
                compared = [
                    f"{found['difference']:+.3g} ({found['low']:+.3g} to {found['high']:+.3g})",
                    "" if found["p"] is None else f"{found['p']:.2g}",
                    "" if kept is None else f"{kept:.4g} %",
                ]
            noise = "within noise" if found.get("is_within_noise") else ""
            figures = [_figure(roles.get(name)) for name in ROLES]
            yield [f"{task} {metric}", chance, *figures, *compared, noise]


def _figure(figure: Mapping[str, Any] | None) -> str:
    if figure is None or figure["value"] is None:
        return ""
    error = figure.get("stderr")
    return f"{figure['value']:.4g}" + ("" if error is None else f" ± {Z * error:.2g}")


def between_seeds(rows: Sequence[RunRow]) -> list[list[str]]:
    """Return how much the figures of runs vary that differ in their seed alone."""
    found = {
        (" ".join(without_seed(row.own)) or "all runs", figure): spread
        for row in rows
        for figure, spread in row.seed_spread.items()
    }
    return [
        [*key, f"{spread['runs']}", f"{spread['mean']:.4g}", f"{spread['spread']:.2g}"]
        for key, spread in found.items()
    ]


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
    counted = [(key, Counter(_text(each.get(key)) for each in found)) for key in _keys(found)]
    return [[key, _listed(counts)] for key, counts in counted if len(counts) > 1]


def origins(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return each key with its values, and how many have them where they differ."""
    counted = [
        (key, Counter(text for each in found if (text := _text(each.get(key)))))
        for key in _keys(found)
    ]
    return [
        [key, *counts] if len(counts) == 1 else [key, _listed(counts)]
        for key, counts in counted
        if counts
    ]


def _keys(found: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for each in found for key in each))


def _listed(counts: Counter[str]) -> str:
    values = [f"{value or 'not given'} ({n})" for value, n in counts.most_common(MOST_VALUES)]
    rest = len(counts) - len(values)
    return ", ".join(values) + (f", and {rest} more" if rest else "")


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def progress(report: Report) -> str:
    """Return how far the runs are, in one line."""
    counts = Counter(row.status for row in report.rows)
    states = ", ".join(f"{number} {status}" for status, number in counts.most_common())
    going = "" if report.is_finished else "; the page reloads itself"
    made = report.made_at[:16].replace("T", " ")
    return f"{len(report.rows)} runs: {states}{going}. Made {made} UTC."


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
