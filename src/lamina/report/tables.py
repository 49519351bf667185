"""The tables that report.md and the page share: tasks, settings over seeds, provenance."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os.path import commonpath
from pathlib import Path
from typing import Any

from lamina.measure.comparison import BEST, FIELDS, NEAR
from lamina.measure.tasks.figures import HALF_WIDTH, as_text
from lamina.measure.tasks.files import ROLES
from lamina.measure.tasks.items import ROWS
from lamina.report import sweep_table
from lamina.report.runs import COSTS, HEALED, RunRow, without_seed
from lamina.units import format_bytes

TASKS = (
    *("task", "items", "chance", *ROLES, "against original", "among runs"),
    *("difference (95 %)", "p", "retention"),
)
TASKS_NOTE = (
    "Figures with half of their 95 % interval. Difference: final minus original, with its paired "
    "bootstrap interval over the same items; p: McNemar's exact test, of a loss a sign-flip test "
    "over documents. Retention: final in % of original, of a loss that of a token's probability."
)
MARKS = {BEST: f" {sweep_table.BEST}", NEAR: f" {sweep_table.NEAR}", None: ""}
SEEDS_NOTE = (
    "Mean over the seeds with half of its 95 % interval, in which seeds vary and, where tasks were "
    f"evaluated, items. {sweep_table.BEST} best of those measured alike; {sweep_table.NEAR} within "
    "noise of it; without a mark: beyond noise, or alone."
)
PROVENANCE = ("what", "values (runs)")

MOST_VALUES = 12
"""Distinct values that are listed."""


def task_lines(row: RunRow) -> Iterator[list[str]]:
    """Yield a line for each metric of each task."""
    for task, metrics in row.tasks.items():
        for metric in metrics:
            figures = [row.figure(task, metric, role) for role in ROLES]
            known = next((figure for figure in figures if figure), {})
            chance = figure_text({"value": known.get("chance")})
            line = [f"{task} {metric}", str(known.get("n", "")), chance, *map(figure_text, figures)]
            found = row.comparisons.get(task, {}).get(metric)
            noise = "within noise" if found and found["is_within_noise"] else ""
            standing = row.standings.get(task, {}).get(metric, "")
            yield [*line, noise, standing, *(_compared(found) if found else [""] * 3)]


def figure_text(figure: Mapping[str, Any]) -> str:
    """Return a figure with half of its 95 % interval."""
    if (value := figure.get("value")) is None:
        return ""
    stderr = figure.get("stderr")
    return f"{value:.4g}" + ("" if stderr is None else f" ± {HALF_WIDTH * stderr:.2g}")


def _compared(found: Mapping[str, Any]) -> list[str]:
    """Return the difference, p and the retention, with intervals."""
    interval = f"{found['difference']:+.3g} ({found['low']:+.3g} to {found['high']:+.3g})"
    p = "" if found["p"] is None else f"{found['p']:.2g}"  # older results have none of a loss
    kept, low, high = (found[f"retention{end}"] for end in ("", "_low", "_high"))
    retention = "" if kept is None else f"{kept:.4g} %"
    if None not in (kept, low, high):
        retention += f" ({low:.3g} to {high:.3g})"
    return [interval, p, retention]


def seed_table(rows: Iterable[RunRow]) -> list[list[str]]:
    """Return a header, and a line for each setting of a sweep that ran with several seeds."""
    settings = {
        (row.sweep or "", " ".join(without_seed(row.own)) or "all runs"): row.seed_spread
        for row in rows
        if row.seed_spread
    }
    sweeps = {sweep for sweep, _ in settings}
    above = commonpath(sweeps) if len(sweeps) > 1 else ""
    pairs = {name: name.split("/") for each in settings.values() for name in each}
    tasks = {
        name: " ".join(pair)
        for name, pair in pairs.items()
        if pair[-1] in FIELDS and pair[0] != ROWS
    }
    columns = {HEALED: "healed loss", **tasks, **COSTS}
    lines = [["setting", "seeds", *columns.values()]]
    for (sweep, setting), spread in settings.items():
        where = f"{Path(sweep).relative_to(above)}: " if above else ""
        seeds = max(each["runs"] for each in spread.values())
        cells = (over_seeds(name, spread[name]) if name in spread else "" for name in columns)
        lines.append([where + setting, f"{seeds}", *cells])
    return lines


def over_seeds(name: str, found: Mapping[str, Any]) -> str:
    """Return a mean over seeds with its interval and mark."""
    ends = found["mean"], found["half_width"]
    is_size, metric = name.endswith("bytes"), name.rpartition("/")[2]
    texts = [format_bytes(round(end)) if is_size else as_text(metric, end) for end in ends]
    return " ± ".join(texts) + MARKS[found["standing"]]


def provenance_lines(found: Iterable[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Yield each key of provenances with its values, and how many have them where they differ."""
    for key, counts in counted_values([_flat(each) for each in found]).items():
        del counts[""]
        if counts:
            yield [key, *counts] if len(counts) == 1 else [key, listed(counts)]


def counted_values(found: Sequence[Mapping[str, Any]]) -> dict[str, Counter[str]]:
    """Return how often each key has each value; an empty text counts those without one."""
    keys = dict.fromkeys(key for each in found for key in each)
    given = {key: [each.get(key) for each in found] for key in keys}
    return {
        key: Counter("" if value is None else str(value) for value in values)
        for key, values in given.items()
    }


def listed(counts: Counter[str]) -> str:
    """Return the values with how many runs have them, the most frequent first."""
    values = [f"{value or 'not given'} ({n})" for value, n in counts.most_common(MOST_VALUES)]
    rest = len(counts) - len(values)
    return ", ".join(values) + (f", and {rest} more" if rest else "")


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        nested = isinstance(value, Mapping)
        found |= _flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return found
