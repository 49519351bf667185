"""The main figures of a run as a short table in the console."""

from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lamina.depth.layer_sets import format_layers
from lamina.export.card import serving
from lamina.measure.evaluate import perplexity
from lamina.report.evaluation_table import comparison_rows
from lamina.units import format_time_split
from lamina.weights.source import ADAPTER_FILE


def summary(content: dict[str, Any], folder: Path) -> RenderableType:
    """Return the closing table of a run, from its result.json and its folder."""
    title = Text(content.get("name") or content["model_type"], style="bold", overflow="fold")
    rows = [*_figures(content), *comparison_rows(folder)]
    parts: list[RenderableType] = [Text(), title, figures_table(rows)]
    for sample in content["samples"]:
        parts += [Text(), _sample(sample)]
    return Group(*parts, Text(), *_where(content, folder))


def figures_table(rows: Sequence[tuple[str, str, str]]) -> Table:
    """Return a table of names, their figures and remarks."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for row in rows:
        table.add_row(*row)
    return table


def _where(content: dict[str, Any], folder: Path) -> list[Text]:
    """Return the path of final/, what loads it, and the command that writes other forms."""
    final, base = folder / content["final"], content["provenance"]["base_model"]
    form = "adapter" if (final / ADAPTER_FILE).is_file() else "merged"
    lines = [str(final), f"Loads in: {serving(form, str(final), base or 'BASE')}"]
    if form == "adapter" and not content["provenance"]["base_revision"]:
        lines.append(f"An adapter: it loads only while {base} exists.")
    command = Text(f"lamina export {quote(str(folder))} --output DIR", no_wrap=True)
    command.overflow = "ignore"  # a command that can be copied
    return [*(Text(line, style="dim", overflow="fold") for line in lines), command]


def _figures(content: dict[str, Any]) -> list[tuple[str, str, str]]:
    metrics = content["metrics"]
    kept, total = content["kept_layers"], content["num_layers"]
    dropped = [layer for layer in range(total) if layer not in kept]
    about = f"dropped: {format_layers(dropped)}" if dropped else "all of them"
    rows = [
        ("layers", f"{len(kept)} of {total}", about),
        ("parameters", f"{content['num_parameters']:,}", ""),
        ("trained", f"{content['trainable_parameters']:,}", ""),
        _data(content["data"]["train"]),
    ]
    if answers := content["data"].get("answers"):
        others = ", ".join(f"{answers[name]:,} {name}" for name in answers if name != "kept")
        rows.append(("answers", f"{answers['kept']:,} of the original", others))
    before = "after removal" if dropped else "before training"
    before = "after the last removal" if content.get("rounds") else before
    is_healed = dropped and (content["trainable_parameters"] or content.get("repair"))
    if repair := content.get("repair"):
        about = f"{repair['tokens']:,} calibration tokens, {repair['seconds']:.1f} s"
        rows.append(("repair", repair["method"], about))
    losses = (
        ("baseline loss", metrics["baseline_eval_loss"], "the untouched model"),
        ("reduced loss", metrics["reduced_eval_loss"], before),
        ("healed loss", metrics["eval_loss"], _recovered(metrics) if is_healed else "final/"),
    )
    rows += [
        (name, f"{loss:.4g}", f"perplexity {perplexity(loss):.4g}, {about}")
        for name, loss, about in losses
        if loss is not None
    ]
    for number, each in enumerate(content.get("rounds") or (), 1):
        loss = "" if each["eval_loss"] is None else f"{each['eval_loss']:.4g}"
        about = f"healed, {len(each['kept_layers'])} layers, {each['trained_tokens']:,} tokens"
        rows.append((f"round {number}", loss, about))
    if metrics["tokens_per_second"]:
        about = f"over steady steps; {metrics['train_tokens']:,} tokens in all"
        if (trained := metrics.get("trained_tokens")) is not None:
            about += f", {trained:,} of them trained"
        rows.append(("tokens/s", f"{metrics['tokens_per_second']:,.0f}", about))
    if metrics["mfu"]:
        rows.append(("MFU", f"{metrics['mfu']:.1%}", "of the accelerator's peak"))
    if seconds := metrics["seconds"]:
        peak = f"{metrics['peak_memory_bytes'] / 2**30:.2f} GiB"
        rows.append(("training", f"{sum(seconds.values()):.1f} s", format_time_split(seconds)))
        rows.append(("peak memory", peak, "of training"))
    return rows


def _data(count: dict[str, Any]) -> tuple[str, str, str]:
    """Return the row about the training tokens: read, dropped, packed."""
    parts = [f"of {count['tokens_in']:,}, {count['tokens_dropped']:,} dropped"]
    if count["rows_skipped"]:
        parts.append(f"rows skipped: {count['rows_skipped']:,}")
    if count["pack_fill"] is not None:
        parts.append(f"packs {count['pack_fill']:.1%} full")
    return "data", f"{count['tokens']:,} tokens", ", ".join(parts)


def _recovered(metrics: dict[str, Any]) -> str:
    """Return which share of the loss that removal cost healing has won back."""
    names = ("baseline_eval_loss", "reduced_eval_loss", "eval_loss")
    baseline, reduced, healed = (metrics[name] for name in names)
    if None in (baseline, reduced, healed) or reduced <= baseline:
        return "final/"
    if healed > reduced:
        return "healing raised the loss"
    return f"recovered {100 * (reduced - healed) / (reduced - baseline):.0f} % of the loss"


def _sample(sample: dict[str, str | None]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name in ("prompt", "expected", "before", "after"):
        if (text := sample.get(name)) is not None:
            table.add_row(name, Text(text.strip()))
    return table
