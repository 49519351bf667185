"""A scan layer by layer: scan.csv, and the tables that `lamina scan` ends with."""

import csv
import io
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.table import Table
from rich.text import Text

from lamina.depth.statistics import LeaveOneOut, Numbers, Statistics
from lamina.errors import ConfigError, ModelError
from lamina.measure.results import SCAN_FILE
from lamina.report.frames import frame_or_rows
from lamina.runtime.console import printable
from lamina.runtime.files import write_text

COLUMNS = ("layer", "loss", "delta", "stderr", "delta_stderr", "kl", "block_influence", "magnitude")
"""Columns of scan.csv; with scan.sublayers=true `attention_loss` and `mlp_loss` follow."""

WIDTH = 100
"""Largest width of the tables, in characters."""

_BAR_WIDTH = 30
_DECADES = 6
_BLOCKS = "contiguous blocks with the smallest angular distance / pi, half-open"


def increases(statistics: Statistics) -> Numbers:
    """Return how much removing each layer raises the loss, in nats per token; below 0 it falls."""
    return tuple(loss - statistics.baseline_loss for loss in statistics.leave_one_out.loss)


def write_csv(statistics: Statistics, path: Path) -> None:
    """Write one row per layer, in full precision and nats per token; may raise an OutputError."""
    scores = statistics.leave_one_out
    columns = [
        range(statistics.num_layers),
        scores.loss,
        increases(statistics),
        scores.stderr,
        scores.delta_stderr,
        scores.kl,
        statistics.block_influence,
        statistics.magnitude,
        *(part.loss for part in statistics.sublayer.values()),
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"{name}_loss" for name in statistics.sublayer)])
    writer.writerows(zip(*columns, strict=True))
    write_text(path, text.getvalue())


def read_scan(folder: str | Path) -> Any:
    """Return a scan's scores, a row for each removal: docs/python.md has the columns.

    They are a pandas DataFrame where pandas is installed, else a list of dicts. Raises ConfigError
    if the folder holds no scan, and ModelError if its scan.json is damaged.
    """
    from lamina.report.reading import read_report  # imports numpy

    given = Path(folder).expanduser()
    report = read_report([given])
    if not report.scans:
        if reason := dict(report.broken).get(printable(str(given.absolute() / SCAN_FILE))):
            raise ModelError(f"{given / SCAN_FILE}: {reason}")
        raise ConfigError(f"{given}: holds no scan: pass the folder of one")
    return frame_or_rows(_removals(report.scans[0].statistics))


def _removals(statistics: Statistics) -> Iterator[dict[str, Any]]:
    """Yield a row for each contiguous block of layers, and for each part of a layer."""
    baseline = statistics.baseline_loss
    for layer in range(statistics.num_layers):
        for count in range(1, statistics.num_layers - layer + 1):
            row = {"part": "layer", "layer": layer, "count": count}
            if count == 1:
                row |= _left_out(statistics.leave_one_out, baseline, layer)
                row["block_influence"] = statistics.block_influence[layer]
                row["magnitude"] = statistics.magnitude[layer]
            row["angular_distance"] = statistics.angular_distance[layer][count]
            row["angular_distance_last"] = statistics.angular_distance_last[layer][count]
            yield row
    for part, scores in statistics.sublayer.items():
        for layer in range(statistics.num_layers):
            yield {"part": part, "layer": layer, "count": 1, **_left_out(scores, baseline, layer)}


def _left_out(scores: LeaveOneOut, baseline: float, layer: int) -> dict[str, float]:
    return {
        "loss": scores.loss[layer],
        "delta": scores.loss[layer] - baseline,
        "stderr": scores.stderr[layer],
        "delta_stderr": scores.delta_stderr[layer],
        "kl": scores.kl[layer],
    }


def scan_table(statistics: Statistics, dtype: str) -> RenderableType:
    """Return the tables of every layer, the best blocks and the stability.

    `dtype` is torch's name for the type in which the model computed.
    """
    heading = _heading(statistics, dtype)
    parts: list[RenderableType] = [Text(), *heading, Text(), _layers(statistics)]
    if statistics.num_layers > 1:
        parts += [Text(), Text(_BLOCKS, style="bold"), _blocks(statistics)]
    if statistics.stability:
        parts += [Text(), _stability(statistics)]
    return Constrain(Group(*parts), WIDTH)


def scored(statistics: Statistics) -> str:
    """Return how much was scored on how much text."""
    counts = {"layer": statistics.num_layers, "prediction": statistics.num_tokens}
    counts["window"] = statistics.num_windows
    return "{}, {} in {}".format(*(f"{n:,} {name}{'s' * (n != 1)}" for name, n in counts.items()))


def _heading(statistics: Statistics, dtype: str) -> list[Text]:
    loss = f"{statistics.baseline_loss:.5g} ± {statistics.baseline_stderr:.2g}"
    floor, top = _bar_range(increases(statistics))
    scale = f"; bars: {floor:g} to {top:.3g}, log" if top else ""
    error = "± one standard error"
    if math.isnan(statistics.baseline_stderr):
        error = "± unknown from one window: raise scan.tokens"
    unit = f"nats per token; each layer left out alone, {error}{scale}"
    return [
        Text(f"{scored(statistics)}, baseline loss {loss}, in {dtype}", style="bold"),
        Text(unit, style="dim"),
    ]


def _layers(statistics: Statistics) -> Table:
    rises = increases(statistics)
    scores = statistics.leave_one_out
    floor, top = _bar_range(rises)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("layer", justify="right", style="bold", no_wrap=True)
    for name in ("loss", "increase", "±"):
        table.add_column(name, justify="right", no_wrap=True)
    # The only column that may shrink, for long marks or a narrow terminal.
    table.add_column(max_width=_BAR_WIDTH)
    for name in ("KL", "influence"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    cheapest = least_index(rises)
    for layer, rise in enumerate(rises):
        noisy = abs(rise) <= 2 * scores.delta_stderr[layer]
        marks = ["cheapest"] * (layer == cheapest) + ["within noise"] * noisy
        table.add_row(
            str(layer),
            f"{scores.loss[layer]:.5g}",
            f"{rise:+.3g}",
            f"{scores.delta_stderr[layer]:.1e}",
            Bar(1, 0, _bar_length(rise, floor, top), color="bright_black" if noisy else "blue"),
            f"{scores.kl[layer]:.3g}",
            f"{statistics.block_influence[layer]:.4f}",
            ", ".join(marks),
            style="green" if layer == cheapest else "",
        )
    return table


def _bar_range(rises: Numbers) -> tuple[float, float]:
    """Return the values at which bars start and end; (0, 0) if no rise is positive."""
    positive = [rise for rise in rises if rise > 0 and math.isfinite(rise)]
    if not positive:
        return 0.0, 0.0
    top = max(positive)
    # A rise that is zero but for rounding must not stretch the scale until all bars look alike.
    smallest = max(min(positive), top / 10**_DECADES)
    return 10.0 ** (math.ceil(math.log10(smallest)) - 1), top


def _bar_length(rise: float, floor: float, top: float) -> float:
    """Return a fraction of the full width; any rise above 0 stays visible."""
    if not rise > 0:
        return 0.0
    if not math.isfinite(rise):
        return 1.0
    return max(math.log(rise / floor) / math.log(top / floor), 0.5 / _BAR_WIDTH)


def _blocks(statistics: Statistics) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("layers", justify="right", style="bold", no_wrap=True)
    for name in ("mean over tokens", "last token"):
        table.add_column(name, justify="right", no_wrap=True)
    size = 1
    while size < statistics.num_layers:
        both = (statistics.angular_distance, statistics.angular_distance_last)
        best = [best_block(distance, size) for distance in both]
        cells = [Text(f"[{start}, {start + size})  {least:.4f}") for start, least in best]
        table.add_row(str(size), *cells)
        size *= 2
    return table


def best_block(distance: tuple[Numbers, ...], size: int) -> tuple[int, float]:
    """Return the first layer and the distance of the contiguous block with the smallest distance.

    `distance` is [start][n], as in `Statistics.angular_distance`; `size` is the block's layers.
    """
    candidates = [row[size] for row in distance if len(row) > size]
    start = least_index(candidates)
    return start, candidates[start]


def least_index(values: Iterable[float]) -> int:
    """Return the index of the smallest value, the first of equal ones; NaN counts as largest."""
    ranked = [(math.inf if math.isnan(value) else value) for value in values]
    return ranked.index(min(ranked))


def _stability(statistics: Statistics) -> Text:
    assert statistics.stability is not None
    tau, overlap = statistics.stability.kendall_tau, statistics.stability.jaccard
    pairs = "1 pair" if len(tau) == 1 else f"{len(tau)} pairs"
    return Text(
        f"stability over {pairs} of sets: Kendall tau {_mean_and_least(tau)}, "
        f"Jaccard {_mean_and_least(overlap)}"
    )


def _mean_and_least(values: Numbers) -> str:
    mean = f"{sum(values) / len(values):.2f}"
    return mean if len(values) == 1 else f"{mean} (least {min(values):.2f})"
