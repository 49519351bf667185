"""docs/results.md and its figures, from the committed result files alone.

    python benchmarks/evidence/page.py [--results DIR] [--docs DIR] [--check]

Shows: which layers, which healing, how far, whether the scan predicts healing, and the cost. The
same files give the same page, to the byte. `--check` fails if the page differs from what it would
write; without result files there is none. Peer: the original model, beside every row.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import record
from figures import agreement, figure, predicted, prediction
from parts import MIDDLE, PARTS, best_selector

from lamina.measure.tasks.figures import HALF_WIDTH
from lamina.report.page.content import content
from lamina.report.page.scan_charts import scan_charts
from lamina.report.report_files import markdown_table
from lamina.report.runs import Report, RunRow
from lamina.report.scan_report import increases
from lamina.report.sweep_table import BEST, NEAR
from lamina.report.tables import (
    PROVENANCE,
    SEEDS_NOTE,
    TASKS,
    TASKS_NOTE,
    provenance_lines,
    seed_table,
    task_lines,
)
from lamina.units import format_bytes, format_duration

HERE = Path(__file__).resolve().parent
NAME, UNKNOWN = "results", "not measured yet"


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
    page = "\n\n".join([*_first(parts), *sections, *_cost(parts), *_made(parts)])
    return {f"{NAME}.md": page + "\n", **drawn}


def _first(parts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the first screen: the answers in short."""
    settings = next(iter(parts.values()))["settings"]
    model = Path(settings["model_name"]).name
    yield f"# Results on {model}"
    yield (
        "Which layers to remove, which healing to use and what that costs, on one model. "
        "`python benchmarks/evidence/run.py` measures it, `python benchmarks/evidence/page.py` "
        "writes this page from the result files in `benchmarks/evidence/results/`. Losses are in "
        "nats per token; ± is half of a 95 % interval."
    )
    lines = [(question, answer(parts) or UNKNOWN) for question, answer in ANSWERS.items()]
    missing = [part for part in PARTS if part not in parts]
    unknown = "Other models, texts, seeds and budgets; learning rates were not searched."
    unknown += f" Parts that did not run: {', '.join(missing)}." if missing else ""
    yield markdown_table(("question", "answer"), [*lines, ("What is not known?", unknown)])


def _which_layers(parts: Mapping[str, Any]) -> str:
    if "which" not in parts:
        return ""
    reports = parts["which"]["reports"]
    name = best_selector(reports)
    row = next(row for row in reports[MIDDLE].rows if row.selector == name)
    near = sum(bool(r.within_noise_of_best and not r.is_best) for r in reports[MIDDLE].rows)
    return (
        f"selector={name}: {row.layers} of {row.num_layers} layers, {_loss(row)} unhealed, "
        f"original {row.baseline_loss:.4g}; within noise of the best: {near} others"
    )


def _which_healing(parts: Mapping[str, Any]) -> str:
    if "heal" not in parts:
        return ""
    rows = parts["heal"]["reports"]["runs"].rows
    (name, loss), *_ = record.ranked(rows)
    row = next(row for row in rows if row.dropped_layers and record.method(row) == name)
    spread = row.seed_spread.get("healed_loss", {"runs": 1, "half_width": None})
    near = [
        record.method(each)
        for each in {record.method(each): each for each in rows if each.dropped_layers}.values()
        if each.seed_spread.get("healed_loss", {}).get("standing") == "within noise"
    ]
    interval = "" if spread["half_width"] is None else f" ± {spread['half_width']:.2g}"
    also = f"; within noise of it: {', '.join(near)}" if near else ""
    trained = f"{row.trained_tokens:,} trained tokens, " if row.trained_tokens else ""
    return f"{name}: {loss:.4g}{interval} ({trained}n = {spread['runs']} seeds){also}"


def _lost(parts: Mapping[str, Any]) -> str:
    """Return what the best healing loses at the middle depth, by task."""
    if not {"tasks", "heal"} <= parts.keys():
        return ""
    (name, _), *_ = record.ranked(parts["heal"]["reports"]["runs"].rows)
    rows = parts["tasks"]["reports"]["all items"].rows
    row = next((row for row in rows if record.method(row) == name), rows[0])
    lost = [
        f"{task} {metrics['acc']['difference']:+.3f} "
        f"({metrics['acc']['low']:+.3f} to {metrics['acc']['high']:+.3f})"
        for task, metrics in row.comparisons.items()
        if "acc" in metrics
    ]
    loss = "" if row.difference is None else f"loss {row.difference:+.3g}; accuracy: "
    return f"{row.layers} of {row.num_layers} layers: {loss}{', '.join(lost)}"


def _what_it_cost(parts: Mapping[str, Any]) -> str:
    costs = [each for part in parts.values() for each in part["costs"].values()]
    return f"{sum(each['cpu_seconds'] for each in costs) / 3600:.1f} CPU-hours in all"


ANSWERS = {
    "Which layers?": _which_layers,
    "Which healing?": _which_healing,
    "What is lost at 80 % of the layers?": _lost,
    "What did it cost?": _what_it_cost,
}


def _loss(row: RunRow) -> str:
    error = row.healed_stderr
    interval = "" if error is None else f" ± {HALF_WIDTH * error:.2g}"
    mark = BEST if row.is_best else NEAR if row.within_noise_of_best else ""
    return "" if row.healed_loss is None else f"{row.healed_loss:.4g}{interval} {mark}".rstrip()


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
    groups = {name: each for name, each in reports.items() if name != "scans"}
    order = sorted(groups, key=lambda name: -(groups[name].rows[0].layers or 0))
    yield (
        "Loss without healing, on held-out text of all kinds mixed "
        f"(n = {settings['documents']} documents of each; {BEST} best; {NEAR} within noise of it, "
        "by the paired interval on the same rows). The selectors were calibrated on a mix of the "
        "same kinds of text."
    )
    selectors = dict.fromkeys(row.selector for name in order for row in groups[name].ranked)
    by_name = [{row.selector: row for row in groups[name].rows} for name in order]
    names = ("selector", *(f"{groups[name].rows[0].layers} layers" for name in order))
    lines = [
        (f"{name}", *(_loss(rows[name]) if name in rows else "" for rows in by_name))
        for name in selectors
    ]
    yield markdown_table(names, lines)
    yield f"Each text and task with {groups[MIDDLE].rows[0].layers} layers:"
    yield from _tasks(groups[MIDDLE])


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


def _tasks(report: Report) -> Iterator[str]:
    yield markdown_table(
        ("run", *TASKS), [[row.name, *line] for row in report.ranked for line in task_lines(row)]
    )
    yield TASKS_NOTE


def _heal(part: Mapping[str, Any], drawn: dict[str, str]) -> Iterator[str]:
    report, settings = part["reports"]["runs"], part["settings"]
    yield "## Which healing"
    yield (
        f"One choice of layers, {settings['budget']} trained tokens, seeds "
        f"{', '.join(map(str, settings['seeds']))}. original_sft_lora is the reference: the whole "
        "model trained on the same rows. All rows are measured on the same held-out texts, and the "
        "best checkpoint is chosen by the same loss."
    )
    if len(lines := seed_table(report.ranked)) > 1:
        yield markdown_table(lines[0], lines[1:])
        yield SEEDS_NOTE
    yield from _losses(report)
    yield from _charts(report, "chart-healing", drawn)


def _losses(report: Report) -> Iterator[str]:
    header = ("run", "layers", "loss", "original", "trained tokens", "training", "peak memory")
    lines = [
        (
            row.name,
            f"{row.layers}",
            _loss(row),
            "" if row.baseline_loss is None else f"{row.baseline_loss:.4g}",
            f"{row.trained_tokens or 0:,}",
            format_duration(row.train_seconds or 0),
            format_bytes(row.peak_memory_bytes or 0),
        )
        for row in report.ranked
    ]
    yield markdown_table(header, lines)


def _charts(report: Report, chosen: str, drawn: dict[str, str]) -> Iterator[str]:
    """Yield the report's charts whose id begins so."""
    shown = content(report)
    for chart in shown["charts"]:
        if chart["id"].startswith(chosen):
            name = chart["id"].removeprefix("chart-")
            yield figure(f"{NAME}-{name}", chart, shown["rows"], drawn)


def _all_items(part: Mapping[str, Any], drawn: dict[str, str]) -> Iterator[str]:
    yield "### All items of the tasks"
    yield from _tasks(part["reports"]["all items"])


def _far(part: Mapping[str, Any], drawn: dict[str, str]) -> Iterator[str]:
    report, settings = part["reports"]["runs"], part["settings"]
    yield "## How far"
    yield (
        f"The best healing at several depths, {settings['budget']} trained tokens each, one seed; "
        f"tasks: the first {settings['task_items']} items. Lines are the Pareto front."
    )
    yield from _losses(report)
    yield from _charts(report, "chart-loss-", drawn)
    yield from _tasks(report)


def _predict(part: Mapping[str, Any], drawn: dict[str, str]) -> Iterator[str]:
    yield "## Does the scan predict healing?"
    budget, reports = part["settings"]["predict_budget"], part["reports"]
    yield (
        f"Loss before and after {budget} trained tokens, on the same held-out rows. Kendall's tau "
        "with a 95 % bootstrap interval over runs."
    )
    yield markdown_table(("removed", "n runs", "tau (95 %)"), prediction(reports))
    yield figure(f"{NAME}-predict", predicted(reports), (), drawn)


SECTIONS = {"which": _which, "heal": _heal, "tasks": _all_items, "far": _far, "predict": _predict}


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


def _made(parts: Mapping[str, Any]) -> Iterator[str]:
    yield "## Made with"
    reports = [report for part in parts.values() for report in part["reports"].values()]
    found = [each for report in reports for each in report.provenances]
    yield markdown_table(PROVENANCE, [*provenance_lines(found)])


if __name__ == "__main__":
    main()
