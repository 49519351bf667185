"""The first screen of the page: the questions and their answers in short."""

from collections.abc import Iterator, Mapping
from typing import Any

import record
from parts import MIDDLE, PARTS, best_selector
from sections import loss_text, methods, n_of

from lamina.depth.layer_sets import format_layers
from lamina.measure.comparison import NEAR as NEAR_BEST
from lamina.measure.tasks.items import ROWS
from lamina.report.report_files import markdown_table
from lamina.report.runs import HEALED, RunRow
from lamina.report.sweep_table import BEST, NEAR

UNKNOWN = "not measured yet"


def first_screen(parts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the first screen: the answers in short."""
    found = next(iter(parts.values()))
    yield f"# Results on {record.model(found)}"
    note = f"{found['settings']['note']} " if found["settings"]["note"] else ""
    yield (
        f"Which layers to remove, which healing to use and what that costs, on one model. {note}"
        "`python benchmarks/evidence/run.py` measures it, `python benchmarks/evidence/page.py` "
        "writes this page from the result files in `benchmarks/evidence/results/`. Losses are in "
        f"nats per token; ± is half of a 95 % interval over items; {BEST} best, {NEAR} within "
        "noise of it, by the paired interval on the same items."
    )
    yield answers(parts)


def answers(parts: Mapping[str, Any]) -> str:
    """Return the table of questions and answers."""
    lines = [(question, answer(parts) or UNKNOWN) for question, answer in ANSWERS.items()]
    missing = [part for part in PARTS if part not in parts]
    unknown = (
        "Other models, texts and budgets. Learning rates and the selectors' amount of text were "
        "not searched. The layers were chosen by the loss on the texts that it is reported on, and "
        "a healing's best checkpoint by the loss on its rows. Depths and all items have one seed."
    )
    unknown += f" Parts that did not run: {', '.join(missing)}." if missing else ""
    waiting = parts.get("heal", {}).get("missing")
    unknown += f" Healings that did not run yet: {', '.join(waiting)}." if waiting else ""
    return markdown_table(("question", "answer"), [*lines, ("What is not known?", unknown)])


def _which_layers(parts: Mapping[str, Any]) -> str:
    if "which" not in parts:
        return ""
    rows = parts["which"]["reports"][MIDDLE].rows
    name = best_selector(parts["which"]["reports"], parts["which"]["settings"]["texts"])
    row = next(row for row in rows if row.selector == name)
    near = [f"{r.selector}" for r in rows if r is not row and (r.is_best or r.within_noise_of_best)]
    return (
        f"selector={name}. To keep {row.layers} of {row.num_layers} it drops "
        f"{format_layers(row.dropped_layers or ())}: loss {loss_text(row)} unhealed, original "
        f"{row.baseline_loss:.4g}{n_of(row)}. Within noise of the best: "
        f"{', '.join(near) or 'none'}."
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
        for method, each in methods(runs).items()
        if method != name and each.seed_spread.get(HEALED, {}).get("standing") == NEAR_BEST
    ]
    reference = parts["heal"]["reports"].get("reference")
    trained = reference.rows[0] if reference else None
    return (
        f"{name}: loss {loss:.4g}{interval} after {row.trained_tokens or 0:,} trained tokens "
        f"(n = {spread['runs']} seeds); original {row.baseline_loss:.4g}{n_of(row)}"
        + (f", trained on the same rows {trained.healed_loss:.4g}" if trained else "")
        + f". Within noise of it: {', '.join(near) or 'none'}. This loss rewards fitting the rows' "
        "own answers; what is lost elsewhere is in the columns of other texts and kl."
    )


def _lost(parts: Mapping[str, Any]) -> str:
    """Return what the best healing loses at the middle depth, in loss and by task."""
    if "heal" not in parts:
        return ""
    healed = parts["heal"]["reports"]["runs"].rows
    (name, _), *_ = record.ranked(healed)
    losses = next(row for row in healed if record.method(row) == name)
    lost = [
        _difference("loss" if task == ROWS else f"{task} loss", metrics.get("loss"), losses, task)
        for task, metrics in sorted(losses.comparisons.items(), key=lambda pair: pair[0] != ROWS)
    ]
    asked = parts["tasks"]["reports"]["all items"].rows if "tasks" in parts else []
    items = [row for row in asked if record.method(row) == name]
    lost += [
        _difference(f"{task} acc", metrics.get("acc"), row, task)
        for row in items
        for task, metrics in row.comparisons.items()
    ]
    kept = f"{losses.layers} of {losses.num_layers} layers, {name}, seed {losses.seed}: "
    return kept + "; ".join(filter(None, lost)) + "."


def _difference(name: str, found: Mapping[str, Any] | None, row: RunRow, task: str) -> str:
    if not found:
        return ""
    low, high = found["low"], found["high"]
    return f"{name} {found['difference']:+.3f} ({low:+.3f} to {high:+.3f}){n_of(row, task)}"


def _what_it_cost(parts: Mapping[str, Any]) -> str:
    hours = {
        part: sum(each["cpu_seconds"] for each in found["costs"].values()) / 3600
        for part, found in parts.items()
    }
    each = ", ".join(f"{part} {spent:.1f}" for part, spent in hours.items())
    return f"{sum(hours.values()):.1f} CPU-hours in all: {each}."


ANSWERS = {
    "Which layers?": _which_layers,
    "Which healing?": _which_healing,
    "What is lost at 80 % of the layers?": _lost,
    "What did it cost?": _what_it_cost,
}
