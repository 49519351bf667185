"""What dry_run=true shows: the config, the plan, the resources needed, and some training rows."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lamina.depth.layer_sets import format_layers
from lamina.errors import ConfigError
from lamina.report.run_summary import figures_table
from lamina.units import format_bytes, format_duration

MAX_CHARACTERS = 400
"""Longer pieces of a row are shown by their two ends."""

RATE = "at the first step's speed, without evaluations"


def dry_run_report(content: dict[str, Any], config: str, console: Console) -> RenderableType:
    """Return the report of a dry run; `config` is the resolved config, as YAML.

    On a console without colours, trained text is marked by ⟦ and ⟧.
    """
    marks = console.color_system is None
    parts: list[RenderableType] = [Text(config.rstrip()), Text()]
    parts += [Text(_layers(content["kept_layers"], content["num_layers"]))]
    for number, each in enumerate(content["rounds"], 2):
        shown = f"{each['layers']} layers, chosen once round {number - 1} has healed"
        if each["kept_layers"]:
            shown = _layers(each["kept_layers"], content["num_layers"])
        parts.append(Text(f"round {number}: {shown}"))
    parts += [Text(content["chosen"] or "")] + [Text()] * bool(content["chosen"])
    parts += [
        _figures(content),
        Text(),
        _data({split: content["data"][split] for split in ("train", "eval")}),
        Text(),
    ]
    legend = Text("training rows; trained: ").append(*_styled("so", True, marks))
    parts += [legend.append(", read: ").append(*_styled("so", False, marks))]
    parts += [_row(row, marks) for row in content["sample"]]
    return Group(*parts)


def _layers(kept: Sequence[int], total: int) -> str:
    strip = "".join("■" if index in kept else "□" for index in range(total))
    return f"{strip}  {len(kept)} of {total} layers: {format_layers(kept)}"


def refuse_what_does_not_fit(content: dict[str, Any], output_dir: str) -> None:
    """Refuse a run whose checkpoints and final/ need more disk than is free."""
    footprint = content["footprint"]
    if footprint["disk"] > footprint["free_disk"]:
        rounds = f" of each of {1 + len(content['rounds'])} rounds" * bool(content["rounds"])
        needed, free = format_bytes(footprint["disk"]), format_bytes(footprint["free_disk"])
        raise ConfigError(
            f"output_dir={output_dir}: {footprint['checkpoints']} checkpoints and final/{rounds} "
            f"take {needed}, {free} are free: "
            "lower save_total_limit, or use another output_dir"
        )


def sweep_totals(contents: Sequence[dict[str, Any]], jobs: int) -> str:
    """Return what all jobs of a sweep take together, given the dry runs of those that can run."""
    disk = sum(content["footprint"]["disk"] for content in contents)
    free = min((content["footprint"]["free_disk"] for content in contents), default=0)
    seconds = [content["seconds"] for content in contents]
    count = f"{jobs} jobs" if len(contents) == jobs else f"{len(contents)} of {jobs} jobs"
    time = f"{format_duration(sum(seconds))} of training, {RATE}" if seconds else "time not known"
    return f"sweep of {count}: {format_bytes(disk)} of disk, {format_bytes(free)} free; {time}"


def _figures(content: dict[str, Any]) -> Table:
    footprint, step = content["footprint"], content["step"]
    share = content["trainable_parameters"] / content["parameters"]
    sizes = {name: format_bytes(number) for name, number in footprint.items()}
    free = f"of {sizes['free_memory']} free, libraries included, {content['device']}"
    kept = f"at most {footprint['checkpoints']} at a time"
    processes = content["processes"]
    where = "in one process" if processes == 1 else f"in {processes} processes together"
    about = f"{step['tokens']:,} tokens forward and backward, {step['seconds']:.1f} s"
    held = ["weights", *["teacher"] * bool(footprint["teacher"]), "gradients", "optimizer"]
    return figures_table(
        [
            ("parameters", f"{content['parameters']:,}", "without the adapter's"),
            ("trained", f"{content['trainable_parameters']:,}", f"{share:.2%} of that number"),
            *((name, sizes[name], "") for name in held),
            ("peak memory", sizes["peak_memory"], free),
            ("one checkpoint", sizes["checkpoint"], kept),
            ("final/", sizes["final"], content["form"]),
            ("disk", sizes["disk"], f"of {sizes['free_disk']} free"),
            ("batch", f"{content['batch']:,}", f"sequences in one step, {where}"),
            ("steps", f"{content['steps']:,}", "of the optimizer"),
            ("training", format_duration(content["seconds"]), RATE),
            ("first loss", f"{step['loss']:.4g}", about),
        ]
    )


def _data(counts: dict[str, dict[str, Any]]) -> Table:
    """One column per split: its rows and tokens, kept and dropped."""
    table = Table(box=None, pad_edge=False)
    table.add_column("", style="bold")
    for split in counts:
        table.add_column(split, justify="right")
    for name in next(iter(counts.values())):
        cells = [_cell(figures[name]) for figures in counts.values()]
        table.add_row(name.replace("_", " "), *cells)
    return table


def _cell(value: float | None) -> str:
    """Format a count of rows or tokens, or how full packs are."""
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.1%}"


def _row(pieces: Sequence[dict[str, Any]], marks: bool) -> Text:
    text = Text("\n")
    for piece in pieces:
        shown, half = piece["text"], MAX_CHARACTERS // 2
        if len(shown) > MAX_CHARACTERS:
            shown = f"{shown[:half]} … {shown[-half:]}"
        text.append(*_styled(shown, piece["trained"], marks))
    return text


def _styled(text: str, trained: bool, marks: bool) -> tuple[str, str]:
    return f"⟦{text}⟧" if marks and trained else text, "bold green" if trained else "dim"
