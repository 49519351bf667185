"""docs/results.md and its figures, from the committed result files alone.

    python benchmarks/evidence/page.py [--results DIR] [--docs DIR] [--check]

Shows: which layers, which healing, how far, whether the scan predicts healing, and the cost. The
same files give the same page, to the byte. `--check` fails if the page differs from what it would
write; without result files there is none. Peer: the original model, beside every row.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import record
from figures import agreement, figure, predicted, prediction
from parts import MIDDLE, PARTS, best_selector

from lamina.depth.layer_sets import format_layers
from lamina.measure.comparison import NEAR as NEAR_BEST
from lamina.measure.tasks.figures import HALF_WIDTH
from lamina.measure.tasks.files import ORIGINAL
from lamina.measure.tasks.items import ROWS
from lamina.report.page.content import content
from lamina.report.page.scan_charts import scan_charts
from lamina.report.report_files import markdown_table
from lamina.report.runs import COSTS, HEALED, Report, RunRow
from lamina.report.scan_report import increases
from lamina.report.sweep_table import BEST, NEAR
from lamina.report.tables import (
    MARKS,
    PROVENANCE,
    SEEDS_NOTE,
    TASKS,
    TASKS_NOTE,
    figure_text,
    over_seeds,
    provenance_lines,
    task_lines,
)
from lamina.units import format_bytes, format_duration

HERE = Path(__file__).resolve().parent
NAME, UNKNOWN = "results", "not measured yet"
HEALING = ("loss", "kl", "exact_match", "ended", "looped", "capped")
"""Metrics of the texts and questions that every healing is measured on."""


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--docs", type=Path, default=HERE.parents[1] / "docs")
    parser.add_argument("--check", action="store_true", help="fail if the page is another one")
    options = parser.parse_args()
    found = {part: options.results / f"{part}.json" for part in PARTS}
    parts = {part: record.read(path) for part, path in found.items() if path.is_file()}
    if not parts:
        return
    for path, text in files(parts).items():
        path = options.docs / path
        if not options.check:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text("utf-8") != text:
            sys.exit(f"error: {path} is not what its result files give: run page.py")


def files(parts: Mapping[str, Any]) -> dict[str, str]:
    """Return the page and its figures by their file names."""
    drawn: dict[str, str] = {}
    sections = [each for part in parts for each in SECTIONS[part](parts[part], drawn)]
    page = "\n\n".join([*_first(parts), *sections, *_cost(parts), *_card(parts), *_made(parts)])
    return {f"{NAME}.md": page + "\n", **drawn}


def _first(parts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the first screen: the answers in short."""
    found = next(iter(parts.values()))
    yield f"# Results on {record.model(found)}"
    note = f"{found['settings']['note']} " if found["settings"]["note"] else ""
    yield (
        f"Which layers to remove, which healing to use and what that costs, on one model. {note}"
        "`python benchmarks/evidence/run.py` measures it, `python benchmarks/evidence/page.py` "
        "writes this page from the result files in `benchmarks/evidence/results/`. Losses are in "
        f"nats per token; ± is half of a 95 % interval; {BEST} best, {NEAR} within noise of it."
    )
    lines = [(question, answer(parts) or UNKNOWN) for question, answer in ANSWERS.items()]
    missing = [part for part in PARTS if part not in parts]
    unknown = "Other models, texts, seeds and budgets; learning rates were not searched."
    unknown += f" Parts that did not run: {', '.join(missing)}." if missing else ""
    yield markdown_table(("question", "answer"), [*lines, ("What is not known?", unknown)])


def _which_layers(parts: Mapping[str, Any]) -> str:
    if "which" not in parts:
        return ""
    rows = parts["which"]["reports"][MIDDLE].rows
    name = best_selector(parts["which"]["reports"], parts["which"]["settings"]["texts"])
    row = next(row for row in rows if row.selector == name)
    near = [f"{r.selector}" for r in rows if r is not row and (r.is_best or r.within_noise_of_best)]
    return (
        f"selector={name}: of {row.num_layers} layers it drops "
        f"{format_layers(row.dropped_layers or ())}; loss {_loss(row)} unhealed, original "
        f"{row.baseline_loss:.4g}{_n(row)}; within noise of the best: {', '.join(near) or 'none'}"
    )


def _which_healing(parts: Mapping[str, Any]) -> str:
    if "heal" not in parts:
        return ""
    runs = parts["heal"]["reports"]["runs"]
    (name, loss), *_ = record.ranked(runs.rows)
    row = next(row for row in runs.rows if record.method(row) == name)
    spread = row.seed_spread.get(HEALED, {"runs": 1, "half_width": None})
    interval = "" if spread["half_width"] is None else f" ± {spread['half_width']:.2g}"
    near = [
        method
        for method, each in _methods(runs).items()
        if method != name and each.seed_spread.get(HEALED, {}).get("standing") == NEAR_BEST
    ]
    return (
        f"{name}: loss {loss:.4g}{interval} after {row.trained_tokens or 0:,} trained tokens "
        f"(n = {spread['runs']} seeds), original {row.baseline_loss:.4g}{_n(row)}; within noise of "
        f"it: {', '.join(near) or 'none'}"
    )


def _lost(parts: Mapping[str, Any]) -> str:
    """Return what the best healing loses at the middle depth, in loss and by task."""
    if not {"tasks", "heal"} <= parts.keys():
        return ""
    healed = parts["heal"]["reports"]["runs"].rows
    (name, _), *_ = record.ranked(healed)
    losses = next(row for row in healed if record.method(row) == name)
    items = next(
        row for row in parts["tasks"]["reports"]["all items"].rows if record.method(row) == name
    )
    lost = [_difference("loss", losses.comparisons.get(ROWS, {}).get("loss"), losses, ROWS)]
    for task, metrics in items.comparisons.items():
        lost += [_difference(f"{task} acc", metrics.get("acc"), items, task)]
    kept = f"{losses.layers} of {losses.num_layers} layers, {name}: "
    return kept + "; ".join(filter(None, lost))


def _difference(name: str, found: Mapping[str, Any] | None, row: RunRow, task: str) -> str:
    if not found:
        return ""
    low, high = found["low"], found["high"]
    return f"{name} {found['difference']:+.3f} ({low:+.3f} to {high:+.3f}){_n(row, task)}"


def _what_it_cost(parts: Mapping[str, Any]) -> str:
    hours = {
        part: sum(each["cpu_seconds"] for each in found["costs"].values()) / 3600
        for part, found in parts.items()
    }
    each = ", ".join(f"{part} {spent:.1f}" for part, spent in hours.items())
    return f"{sum(hours.values()):.1f} CPU-hours in all: {each}"


ANSWERS = {
    "Which layers?": _which_layers,
    "Which healing?": _which_healing,
    "What is lost at 80 % of the layers?": _lost,
    "What did it cost?": _what_it_cost,
}


def _n(row: RunRow, task: str = ROWS) -> str:
    found = next(iter(row.tasks.get(task, {}).values()), {})
    return f" (n = {next(iter(found.values()))['n']})" if found else ""


def _loss(row: RunRow) -> str:
    error = row.healed_stderr
    interval = "" if error is None else f" ± {HALF_WIDTH * error:.2g}"
    mark = BEST if row.is_best else NEAR if row.within_noise_of_best else ""
    return "" if row.healed_loss is None else f"{row.healed_loss:.4g}{interval} {mark}".rstrip()


def _figures(report: Report, named: Callable[[RunRow], str], metrics: Sequence[str]) -> str:
    """Return a table of the runs' losses, and of these metrics of the tasks; original first."""
    rows = report.ranked
    pairs = {
        (task, metric): None
        for row in rows
        for task, found in row.tasks.items()
        for metric in metrics
        if task != ROWS and metric in found
    }
    columns = [f"{task} {metric}{_n(rows[0], task)}" for task, metric in pairs]
    loss = any(ROWS in row.tasks for row in rows)
    before = [*[(ROWS, "loss")] * loss, *pairs]
    lines = [["original", *(figure_text(rows[0].figure(*pair, ORIGINAL)) for pair in before)]]
    for row in rows:
        own = [
            figure_text(row.figure(*pair)) + MARKS[row.standings.get(pair[0], {}).get(pair[1])]
            for pair in pairs
        ]
        lines.append([named(row), *[_loss(row)] * loss, *own])
    return markdown_table(("", *[f"loss{_n(rows[0])}"] * loss, *columns), lines)


def _which(part: Mapping[str, Any], drawn: dict[str, str]) -> Iterator[str]:
    reports, settings = part["reports"], part["settings"]
    scans = reports["scans"].scans
    yield "## Which layers"
    pairs = agreement({scan.folder: increases(scan.statistics) for scan in scans})
    taus = "; ".join(f"{first} and {second}: {tau:.2f}" for first, second, tau in pairs)
    yield (
        f"Each layer left out alone, on {len(scans)} calibration texts, {settings['scan_sets']} "
        f"sets of {settings['scan_tokens']} tokens each. Kendall's tau of the rankings of two "
        f"texts: {taus or 'one text alone'}."
    )
    header = ("text", "n tokens", "windows", "original", "cheapest layers", "tau between sets")
    yield markdown_table(header, [_scan_line(scan) for scan in scans])
    for number, scan in enumerate(scans):
        spec = next(iter(scan_charts(scan.statistics, number, scan.folder)))
        yield figure(f"{NAME}-scan-{scan.folder}", spec, (), drawn)
    yield (
        "Loss without healing, on held-out text of all kinds together (loss) and of each. Marks: "
        "the paired interval on the same rows. The selectors read a mix of the same kinds of text."
    )
    groups = [report for name, report in reports.items() if name != "scans"]
    for report in sorted(groups, key=lambda report: -(report.rows[0].layers or 0)):
        yield f"### {report.rows[0].layers} layers"
        yield _figures(report, lambda row: f"{row.selector}", ("loss", "acc"))


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
        "model trained on the same rows. All rows are measured on the same held-out texts: loss is "
        "that of the data's own answers, which also chooses the best checkpoint; kl is the "
        "divergence from the original's predictions."
    )
    yield _over_seeds(reports)
    yield SEEDS_NOTE
    for name in ("reference", "runs"):
        if name in reports:
            yield f"Each run ({name}):"
            yield _figures(reports[name], _method_and_seed, HEALING)
            yield _spent(reports[name], _method_and_seed)
    yield from _charts(reports["runs"], ("chart-healing",), drawn)


def _methods(report: Report) -> dict[str, RunRow]:
    """Return a run of each method; the runs of one have the same figures over seeds."""
    return {record.method(row): row for row in reversed(report.ranked) if row.is_complete}


def _method_and_seed(row: RunRow) -> str:
    return f"{record.method(row)}, seed {row.seed}"


def _over_seeds(reports: Mapping[str, Report]) -> str:
    rows = [
        row for name in ("reference", "runs") if name in reports for row in reports[name].ranked
    ]
    shown = [
        f"{task}/{metric}"
        for task, found in rows[0].tasks.items()
        for metric in HEALING
        if task != ROWS and metric in found
    ]
    columns = {HEALED: "loss", **{name: name.replace("/", " ") for name in shown}, **COSTS}
    lines = []
    for method, row in {record.method(row): row for row in rows}.items():
        cells = [
            over_seeds(name, row.seed_spread[name]) if name in row.seed_spread else ""
            for name in columns
        ]
        if any(cells):
            lines.append([method, f"{row.seed_spread[HEALED]['runs']}", *cells])
    return markdown_table(("healing", "seeds", *columns.values()), lines) if lines else ""


def _spent(report: Report, named: Callable[[RunRow], str]) -> str:
    """Return a table of the runs' sizes, speeds and costs."""
    header = ("", "layers", "parameters", "size", "decode tokens/s", "trained tokens", "training")
    lines = [
        (
            named(row),
            f"{row.layers}",
            f"{row.parameters:,}",
            format_bytes(row.bytes or 0),
            f"{row.decode_tokens_per_second:.3g}" if row.decode_tokens_per_second else "",
            f"{row.trained_tokens or 0:,}",
            format_duration(row.train_seconds or 0),
            format_bytes(row.peak_memory_bytes or 0),
        )
        for row in report.ranked
    ]
    return markdown_table((*header, "peak memory"), lines)


def _charts(report: Report, chosen: Sequence[str], drawn: dict[str, str]) -> Iterator[str]:
    """Yield the report's charts with these ids."""
    shown = content(report)
    for chart in shown["charts"]:
        if chart["id"] in chosen:
            name = chart["id"].removeprefix("chart-")
            yield figure(f"{NAME}-{name}", chart, shown["rows"], drawn)


def _all_items(part: Mapping[str, Any], drawn: dict[str, str]) -> Iterator[str]:
    report = part["reports"]["all items"]
    yield "### All items of the tasks"
    yield _figures(report, record.method, ("acc", "acc_norm", "exact_match", "loss"))
    lines = [[record.method(row), *line] for row in report.ranked for line in task_lines(row)]
    yield markdown_table(("healing", *TASKS), lines)
    yield TASKS_NOTE


def _far(part: Mapping[str, Any], drawn: dict[str, str]) -> Iterator[str]:
    report, settings = part["reports"]["runs"], part["settings"]
    yield "## How far"
    yield (
        f"The best healing at several depths, {settings['budget']} trained tokens each, one seed, "
        f"beside the whole model; tasks: the first {settings['task_items']} items. Lines are the "
        "Pareto front."
    )
    yield _spent(report, _depth)
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
    yield ""


SECTIONS = {
    "which": _which,
    "curve": _curve,
    "heal": _heal,
    "tasks": _all_items,
    "far": _far,
    "predict": _predict,
}


def _cost(parts: Mapping[str, Any]) -> Iterator[str]:
    yield "## Cost"
    lines = [
        (part, name, format_duration(each["seconds"]), format_duration(each["cpu_seconds"]))
        for part, found in parts.items()
        for name, each in found["costs"].items()
    ]
    every = [each for found in parts.values() for each in found["costs"].values()]
    sums = [sum(each[kind] for each in every) for kind in ("seconds", "cpu_seconds")]
    lines.append(("all", "", format_duration(sums[0]), format_duration(sums[1])))
    yield markdown_table(("part", "sweep", "wall clock", "CPU"), lines)


def _card(parts: Mapping[str, Any]) -> Iterator[str]:
    if "heal" in parts:
        yield "## The model card of the best healing"
        yield f"~~~~markdown\n{parts['heal']['card']}~~~~"


def _made(parts: Mapping[str, Any]) -> Iterator[str]:
    yield "## Made with"
    reports = [report for part in parts.values() for report in part["reports"].values()]
    found = [each for report in reports for each in report.provenances]
    yield markdown_table(PROVENANCE, [*provenance_lines(found)])


if __name__ == "__main__":
    main()
