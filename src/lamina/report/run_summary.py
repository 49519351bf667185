"""The main figures of a run as a short table in the console."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lamina.units import format_time_split
from lamina.weights.source import ADAPTER_FILE


def summary(content: dict[str, Any], folder: Path) -> RenderableType:
    """Return the closing table of a run, from its result.json and its folder."""
    parts: list[RenderableType] = [Text(), figures_table(_figures(content))]
    if content["samples"]:
        parts += [Text(), _samples(content["samples"])]
    return Group(*parts, Text(), *_where(content, folder / content["final"]))


def figures_table(rows: Sequence[tuple[str, str, str]]) -> Table:
    """Return a table of names, their figures and remarks."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for row in rows:
        table.add_row(*row)
    return table


def _where(content: dict[str, Any], final: Path) -> list[Text]:
    """Return the path of final/, and what an adapter in it depends on."""
    lines = [Text(str(final), style="dim", overflow="fold")]
    base = content["provenance"]["base_model"]
    if (final / ADAPTER_FILE).is_file() and not content["provenance"]["base_revision"]:
        advice = (
            f"An adapter: it loads only while {base} exists. "
            "export.form=merged or lamina export writes a full model."
        )
        lines.append(Text(advice, style="dim"))
    return lines


def _figures(content: dict[str, Any]) -> list[tuple[str, str, str]]:
    metrics = content["metrics"]
    kept = len(content["kept_layers"])
    rows = [
        ("layers", f"{kept} of {content['num_layers']}", content["model_type"]),
        ("parameters", f"{content['num_parameters']:,}", ""),
        ("trained", f"{content['trainable_parameters']:,}", ""),
        _data(content["data"]["train"]),
    ]
    removed = kept < content["num_layers"]
    losses = (
        ("baseline loss", "baseline_eval_loss", "the untouched model"),
        ("reduced loss", "reduced_eval_loss", "after removal" if removed else "before training"),
        ("healed loss", "eval_loss", "final/, nats per token"),
    )
    rows += [
        (name, f"{metrics[key]:.4g}", about)
        for name, key, about in losses
        if metrics[key] is not None
    ]
    if metrics["perplexity"] is not None:
        rows.append(("perplexity", f"{metrics['perplexity']:.3f}", "of the healed loss"))
    if metrics["tokens_per_second"]:
        about = f"over steady steps; {metrics['train_tokens']:,} tokens in all"
        rows.append(("tokens/s", f"{metrics['tokens_per_second']:,.0f}", about))
    if metrics["mfu"]:
        rows.append(("MFU", f"{metrics['mfu']:.1%}", "of the accelerator's peak"))
    seconds = metrics["seconds"]
    rows.append(("training", f"{sum(seconds.values()):.1f} s", format_time_split(seconds)))
    rows.append(("peak memory", f"{metrics['peak_memory_bytes'] / 2**30:.2f} GiB", "of training"))
    return rows


def _data(count: dict[str, Any]) -> tuple[str, str, str]:
    """Return the row about the training tokens: read, dropped, packed."""
    parts = [f"of {count['tokens_in']:,}, {count['tokens_dropped']:,} dropped"]
    if count["rows_skipped"]:
        parts.append(f"rows skipped: {count['rows_skipped']:,}")
    if count["pack_fill"] is not None:
        parts.append(f"packs {count['pack_fill']:.1%} full")
    return "data", f"{count['tokens']:,} tokens", ", ".join(parts)


def _samples(samples: list[dict[str, str]]) -> Table:
    table = Table(box=None, pad_edge=False, expand=True)
    for name in ("prompt", "before", "after"):
        table.add_column(name, overflow="ellipsis", no_wrap=True, ratio=1)
    for sample in samples:
        cells = (sample["prompt"], sample["before"], sample["after"])
        table.add_row(*(Text(" ".join((cell or "").split())) for cell in cells))
    return table
