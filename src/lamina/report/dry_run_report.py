"""What dry_run=true shows: the config, the plan, what it takes, and a few rows of the data."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lamina.depth.layer_sets import format_layers
from lamina.errors import ConfigError
from lamina.units import sized

CUT = 400
"""Characters from which on a piece of a row is shown by its two ends."""


def dry_run_report(content: dict[str, Any], config: str, console: Console) -> RenderableType:
    """Return what a rehearsal found.

    Args:
        content: What `lamina.dry_run.Rehearsal.report` returned.
        config: The resolved config, as YAML.
        console: Where it goes: without colours, trained text stands between ⟦ and ⟧.
    """
    kept, total = content["kept_layers"], content["num_layers"]
    strip = "".join("■" if index in kept else "□" for index in range(total))
    marks = console.color_system is None
    parts: list[RenderableType] = [Text(config.rstrip()), Text()]
    parts += [Text(f"{strip}  {len(kept)} of {total} layers: {format_layers(kept)}"), Text()]
    parts += [_figures(content), Text(), _data(content["data"]), Text()]
    legend = Text("training rows; trained: ").append(*_styled("so", True, marks))
    parts += [legend.append(", read: ").append(*_styled("so", False, marks))]
    parts += [_row(row, marks) for row in content["sample"]]
    return Group(*parts)


def refuse_what_does_not_fit(content: dict[str, Any], output_dir: str) -> None:
    """Raise if the run would not end for want of memory or disk.

    Args:
        content: What `lamina.dry_run.Rehearsal.report` returned.
        output_dir: Where checkpoints go.

    Raises:
        ConfigError: It would not.
    """
    footprint = content["footprint"]
    if footprint["disk"] > footprint["free_disk"]:
        raise ConfigError(
            f"output_dir={output_dir}: {footprint['checkpoints']} checkpoints and final/ take "
            f"{sized(footprint['disk'])}, {sized(footprint['free_disk'])} are free: lower "
            "save_total_limit, or give another output_dir"
        )


def _figures(content: dict[str, Any]) -> Table:
    footprint, step = content["footprint"], content["step"]
    share = content["trainable_parameters"] / content["parameters"]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row("parameters", f"{content['parameters']:,}", "without the adapter's")
    table.add_row("trained", f"{content['trainable_parameters']:,}", f"{share:.2%} of them")
    for name in ("weights", "gradients", "optimizer"):
        table.add_row(name, sized(footprint[name]), "")
    free = f"of {sized(footprint['free_memory'])} free, libraries included, {content['device']}"
    table.add_row("peak memory", sized(footprint["peak_memory"]), free)
    several = f"{footprint['checkpoints']} beside each other at most"
    table.add_row("one checkpoint", sized(footprint["checkpoint"]), several)
    table.add_row("final/", sized(footprint["final"]), content["form"])
    table.add_row("disk", sized(footprint["disk"]), f"of {sized(footprint['free_disk'])} free")
    several = content["processes"]
    alone = "in one process" if several == 1 else f"in {several} processes together"
    table.add_row("batch", f"{content['batch']:,}", f"sequences in one step, {alone}")
    table.add_row("steps", f"{content['steps']:,}", "of the optimizer")
    about = f"{step['tokens']:,} tokens forward and backward, {step['seconds']:.1f} s"
    table.add_row("first loss", f"{step['loss']:.4g}", about)
    return table


def _data(counts: dict[str, dict[str, Any]]) -> Table:
    """One column a split: what becomes of its rows and tokens."""
    table = Table(box=None, pad_edge=False)
    table.add_column("", style="bold")
    for split in counts:
        table.add_column(split, justify="right")
    for name in next(iter(counts.values())):
        cells = [_count(figures[name]) for figures in counts.values()]
        table.add_row(name.replace("_", " "), *cells)
    return table


def _count(value: float | None) -> str:
    """A number of rows or tokens, or a share of the packs' places."""
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.1%}"


def _row(pieces: Sequence[dict[str, Any]], marks: bool) -> Text:
    text = Text("\n")
    for piece in pieces:
        whole = piece["text"]
        half = CUT // 2
        short = whole if len(whole) <= CUT else f"{whole[:half]} … {whole[-half:]}"
        text.append(*_styled(short, piece["trained"], marks))
    return text


def _styled(text: str, trained: bool, marks: bool) -> tuple[str, str]:
    return f"⟦{text}⟧" if marks and trained else text, "bold green" if trained else "dim"
