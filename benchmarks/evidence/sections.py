"""The sections of the page, one for each part."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import sqrt
from typing import Any

import record
from figures import agreement, figure, predicted, prediction, removal_curve

from lamina.depth.layer_sets import format_layers
from lamina.measure.tasks.figures import HALF_WIDTH
from lamina.measure.tasks.files import FINAL, ORIGINAL
from lamina.measure.tasks.items import ROWS
from lamina.report.page.content import content
from lamina.report.page.scan_charts import scan_charts
from lamina.report.report_files import markdown_table
from lamina.report.runs import COSTS, HEALED, Report, RunRow
from lamina.report.scan_report import increases
from lamina.report.sweep_table import BEST, NEAR
from lamina.report.tables import (
    MARKS,
    SEEDS_NOTE,
    TASKS,
    TASKS_NOTE,
    figure_text,
    over_seeds,
    task_lines,
)
from lamina.units import format_bytes, format_duration

NAME = "results"
HEALING = ("loss", "kl", "exact_match", "ended", "looped", "capped")
"""Metrics of the texts and questions that every healing is measured on."""

MEMORY = {"peak_memory_bytes": COSTS["peak_memory_bytes"]}
"""Of the costs over seeds; jobs share the machine, so each healing's time is that of the CPU."""

SHARES = ("ended", "looped", "capped")
"""Of the answers; their errors follow from their number."""


def n_of(row: RunRow, task: str = ROWS) -> str:
    """Return how many items or rows a task has, as a note."""
    found = next(iter(row.tasks.get(task, {}).values()), {})
    return f" (n = {next(iter(found.values()))['n']})" if found else ""


def loss_text(row: RunRow, *, marked: bool = True) -> str:
    """Return the loss after healing, or without it, with its interval and mark."""
    error = row.healed_stderr
    interval = "" if error is None else f" ± {HALF_WIDTH * error:.2g}"
    mark = "" if not marked else BEST if row.is_best else NEAR if row.within_noise_of_best else ""
    return "" if row.healed_loss is None else f"{row.healed_loss:.4g}{interval} {mark}".rstrip()


def _figures(
    report: Report,
    named: Callable[[RunRow], str],
    metrics: Sequence[str],
    *,
    marked: bool = True,
) -> str:
    """Return a table of the runs' losses, and of these metrics of the tasks; original first.

    Without marks for runs that do not compete.
    """
    rows = report.ranked
    pairs = {
        (task, metric): None
        for row in rows
        for task, found in row.tasks.items()
        for metric in metrics
        if task != ROWS and metric in found
    }
    columns = [f"{task} {metric}{n_of(rows[0], task)}" for task, metric in pairs]
    loss = any(ROWS in row.tasks for row in rows)
    before = [*[(ROWS, "loss")] * loss, *pairs]
    lines = [["original", *(_figure(rows[0], *pair, ORIGINAL) for pair in before)]]
    for row in rows:
        own = [
            _figure(row, task, metric)
            + MARKS[row.standings.get(task, {}).get(metric) if marked else None]
            for task, metric in pairs
        ]
        lines.append([named(row), *[loss_text(row, marked=marked)] * loss, *own])
    return markdown_table(("", *[f"loss{n_of(rows[0])}"] * loss, *columns), lines)


def _figure(row: RunRow, task: str, metric: str, role: str = FINAL) -> str:
    found = row.figure(task, metric, role)
    if found and metric in SHARES:
        share = found["value"]
        found = {**found, "stderr": sqrt(share * (1 - share) / found["n"])}
    return figure_text(found)


def _which(part: Mapping[str, Any], drawn: dict[str, str]) -> Iterator[str]:
    reports, settings = part["reports"], part["settings"]
    scans = reports["scans"].scans
    yield "## Which layers"
    pairs = agreement({scan.folder: increases(scan.statistics) for scan in scans})
    taus = "; ".join(f"{first} and {second}: {tau:.2f}" for first, second, tau in pairs)
    yield (
        f"Each layer left out alone, on {len(scans)} calibration texts, in "
        f"{settings['scan_sets']} sets of windows each. Layer indices are 0-based, ranges "
        "half-open. Kendall's tau says how alike two rankings are: 1 the same, 0 unrelated. "
        f"Between two texts: {taus or 'one text alone'}."
    )
    header = ("text", "n tokens", "windows", "original", "cheapest layers", "tau between sets")
    yield markdown_table(header, [_scan_line(scan) for scan in scans])
    for number, scan in enumerate(scans):
        spec = next(iter(scan_charts(scan.statistics, number, scan.folder)))
        yield figure(f"{NAME}-scan-{scan.folder}", spec, (), drawn)
    yield (
        "Loss without healing, on held-out text of all kinds together (loss) and of each. Marks: "
        "the paired interval on the same rows. The selectors read other text of the same kinds; "
        "random is one draw. The last columns are the tasks' first "
        f"{settings['task_items']} items."
    )
    groups = [report for name, report in reports.items() if name != "scans"]
    for report in sorted(groups, key=lambda report: -(report.rows[0].layers or 0)):
        yield f"### {report.rows[0].layers} layers"
        yield _figures(report, _selection, ("loss", "acc"))


def _selection(row: RunRow) -> str:
    return f"{row.selector}, drops {format_layers(row.dropped_layers or ())}"


def _scan_line(scan: Any) -> tuple[str, ...]:
    scores = scan.statistics
    rises, errors = increases(scores), scores.leave_one_out.delta_stderr
    cheapest = sorted(range(len(rises)), key=rises.__getitem__)[:6]
    named = [f"{n} ({rises[n]:+.2g} ± {HALF_WIDTH * errors[n]:.1g})" for n in cheapest]
    taus = scores.stability.kendall_tau if scores.stability else ()
    tau = f"{sum(taus) / len(taus):.2f} (n = {len(taus)} pairs)" if taus else ""
    start = f"{scores.baseline_loss:.4g} ± {HALF_WIDTH * scores.baseline_stderr:.2g}"
    n = f"{scores.num_tokens:,}", f"{scores.num_windows}"
    return scan.folder, *n, start, ", ".join(named), tau


def _heal(part: Mapping[str, Any], drawn: dict[str, str]) -> Iterator[str]:
    reports, settings = part["reports"], part["settings"]
    yield "## Which healing"
    yield (
        f"One choice of layers, {settings['budget']} trained tokens, seeds "
        f"{', '.join(map(str, settings['seeds']))}. original_sft_lora is the reference: the whole "
        "model trained on the same rows. The ladder chooses its own layers"
        f"{_own_layers(reports['runs'])}. All are measured on the same held-out texts: loss is "
        "that of the data's own answers, which also chooses the best checkpoint; kl is the "
        "divergence from the original's predictions, in nats per token; answers that ended by "
        "themselves, looped, or were capped at the most tokens are shares of all."
    )
    yield _over_seeds(reports, part["costs"])
    yield SEEDS_NOTE + " kl, ended, looped and capped: noise of the seeds alone, no marks."
    for name in ("reference", "runs"):
        if name in reports:
            yield f"Each run ({name}):"
            yield _figures(reports[name], _method_and_seed, HEALING)
            yield _table(reports[name], _method_and_seed, HEALED_COLUMNS)
    yield from _charts(reports["runs"], ("chart-healing",), drawn)


def methods(report: Report) -> dict[str, RunRow]:
    """Return a run of each method; the runs of one have the same figures over seeds."""
    return {record.method(row): row for row in reversed(report.ranked) if row.is_complete}


def _method_and_seed(row: RunRow) -> str:
    return f"{record.method(row)}, seed {row.seed}"


def _own_layers(report: Report) -> str:
    dropped = {
        f"seed {row.seed}: {format_layers(row.dropped_layers or ())}"
        for row in report.rows
        if record.method(row) == "ladder"
    }
    return f" (dropped by {'; '.join(sorted(dropped))})" if dropped else ""


def _over_seeds(reports: Mapping[str, Report], costs: Mapping[str, Any]) -> str:
    rows = [
        row for name in ("reference", "runs") if name in reports for row in reports[name].ranked
    ]
    shown = [
        f"{task}/{metric}"
        for task, found in rows[0].tasks.items()
        for metric in HEALING
        if task != ROWS and metric in found
    ]
    named = {name: name.replace("/", " ") + n_of(rows[0], name.partition("/")[0]) for name in shown}
    columns = {HEALED: f"loss{n_of(rows[0])}", **named, **MEMORY}
    lines = []
    for method, row in {record.method(row): row for row in rows}.items():
        cells = [
            over_seeds(name, row.seed_spread[name] | _unmarked(name))
            if name in row.seed_spread
            else ""
            for name in columns
        ]
        if any(cells):
            spent = format_duration(costs[method]["cpu_seconds"])
            lines.append([method, f"{row.seed_spread[HEALED]['runs']}", *cells, spent])
    header = ("healing", "seeds", *columns.values(), "CPU, all seeds and measuring")
    return markdown_table(header, lines) if lines else ""


def _unmarked(name: str) -> dict[str, None]:
    """Return what removes the mark of a metric whose noise over items is not known."""
    return {"standing": None} if name.rpartition("/")[2] in ("kl", *SHARES) else {}


def _table(report: Report, named: Callable[[RunRow], str], columns: Iterable[str]) -> str:
    """Return a table of the runs' sizes, speeds and costs."""
    lines = [[named(row), *(COLUMNS[each](row) for each in columns)] for row in report.ranked]
    return markdown_table(("", *columns), lines)


def _decoded(row: RunRow) -> str:
    speed = next(iter(row.speed.get(FINAL, ())), None)
    return f"{speed['decode_tokens_per_second']:.3g} ({speed['spread']:.0%})" if speed else ""


COLUMNS: Mapping[str, Callable[[RunRow], str]] = {
    "layers": lambda row: f"{row.layers}",
    "parameters": lambda row: f"{row.parameters:,}",
    "size": lambda row: format_bytes(row.bytes or 0),
    "decode tokens/s (spread)": _decoded,
    "trained tokens": lambda row: f"{row.trained_tokens or 0:,}",
    "training": lambda row: format_duration(row.train_seconds or 0),
    "peak memory": lambda row: format_bytes(row.peak_memory_bytes or 0),
}
HEALED_COLUMNS = ("trained tokens", "peak memory")


def _charts(report: Report, chosen: Sequence[str], drawn: dict[str, str]) -> Iterator[str]:
    """Yield the report's charts with these ids."""
    shown = content(report)
    for chart in shown["charts"]:
        if chart["id"] in chosen:
            name = chart["id"].removeprefix("chart-")
            yield figure(f"{NAME}-{name}", chart, shown["rows"], drawn)


def _all_items(part: Mapping[str, Any], drawn: dict[str, str]) -> Iterator[str]:
    reports = part["reports"]
    yield "### All items of the tasks"
    for name in ("all items", "reference"):
        if name in reports:
            yield _figures(reports[name], record.method, ("acc", "acc_norm", "exact_match", "loss"))
    rows = [row for report in reports.values() for row in report.ranked]
    lines = [[record.method(row), *line] for row in rows for line in task_lines(row)]
    yield markdown_table(("healing", *TASKS), lines)
    yield TASKS_NOTE


def _far(part: Mapping[str, Any], drawn: dict[str, str]) -> Iterator[str]:
    report, settings = part["reports"]["runs"], part["settings"]
    yield "## How far"
    yield (
        f"The best healing at several depths, {settings['budget']} trained tokens each, one seed, "
        "beside the whole model, which is not trained here: original_sft_lora above is. Tasks: the "
        f"first {settings['task_items']} items. Lines are the Pareto front of the means. Decoding: "
        "one answer at a time, the median of three, and the largest minus the smallest time as a "
        "share of it."
    )
    yield _table(report, _depth, COLUMNS)
    yield _figures(report, _depth, ("loss", "acc"))
    yield from _charts(report, ("chart-loss-bytes", "chart-loss-decode"), drawn)


def _depth(row: RunRow) -> str:
    return f"{row.layers} layers" + (", untrained" if not row.trained_tokens else "")


def _predict(part: Mapping[str, Any], drawn: dict[str, str]) -> Iterator[str]:
    yield "## Does the scan predict healing?"
    budget, reports = part["settings"]["predict_budget"], part["reports"]
    yield (
        f"Loss before and after {budget} trained tokens, on the same held-out rows. Kendall's tau "
        "with a 95 % bootstrap interval over runs."
    )
    yield markdown_table(("removed", "n runs", "tau (95 %)"), prediction(reports))
    yield figure(f"{NAME}-predict", predicted(reports), (), drawn)


def _curve(part: Mapping[str, Any], drawn: dict[str, str]) -> Iterator[str]:
    report = part["reports"]["curve"]
    yield "### The removal curve"
    yield f"selector={report.rows[0].selector} at more depths, not healed."
    yield _figures(report, lambda row: f"{row.layers} layers", ("loss",), marked=False)
    yield figure(f"{NAME}-curve", removal_curve(report), (), drawn)


SECTIONS = {
    "which": _which,
    "curve": _curve,
    "heal": _heal,
    "tasks": _all_items,
    "far": _far,
    "predict": _predict,
}
