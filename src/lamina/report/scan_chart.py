"""scan.png: a chart of what each layer and each block of layers contributes."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from lamina.depth.statistics import Statistics
from lamina.report.scan_report import best_block, increases, scored
from lamina.runtime.files import write_bytes

SIZE = (1500, 700)
"""Width and height in pixels."""

_DPI = 125

# Okabe and Ito's palette, distinguishable by the colour-blind.
_BLUE, _ORANGE, _GREEN, _PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
_GREY = "#666666"
_PARTS = {"attention": _GREEN, "mlp": _PINK}


def draw(statistics: Statistics, path: Path) -> None:
    """Draw the losses, the block influence and the angular distances; may raise an OutputError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((SIZE[0] / _DPI, SIZE[1] / _DPI), dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels: dict[str, Any] = figure.subplot_mosaic(
        [["loss", "distance"], ["influence", "distance"]],
        height_ratios=(2, 1),
        width_ratios=(1.15, 1),
    )
    panels["loss"].sharex(panels["influence"])
    _draw_losses(panels["loss"], statistics)
    _draw_influence(panels["influence"], statistics)
    _draw_distances(panels["distance"], statistics)
    figure.suptitle(scored(statistics), fontsize=11)
    picture = io.BytesIO()
    canvas.print_png(picture, pil_kwargs={"compress_level": 9})
    write_bytes(path, picture.getvalue())


def _draw_losses(panel: Any, statistics: Statistics) -> None:
    rises, scores = increases(statistics), statistics.leave_one_out
    errors = [2 * error for error in _drawable(scores.delta_stderr)]
    size, label = _marker_size(statistics), "without the layer (± 2 standard errors)"
    layers, shown = range(statistics.num_layers), _drawable(rises)
    panel.plot(shown, color=_BLUE, marker="o", markersize=size, label=label)
    panel.errorbar(layers, shown, yerr=errors, fmt="none", ecolor=_BLUE, elinewidth=1, capsize=2)
    drawn = [*rises, *(rise + error for rise, error in zip(rises, errors, strict=True))]
    for name, part in statistics.sublayer.items():
        above = [loss - statistics.baseline_loss for loss in part.loss]
        style = {"color": _PARTS[name], "linewidth": 1, "linestyle": "--"}
        panel.plot(_drawable(above), label=f"without its {name}", **style)
        drawn += above
    _scale(panel, drawn, errors)
    panel.set_title(
        "Loss without one layer, above the full model's "
        f"{statistics.baseline_loss:.5g} ± {statistics.baseline_stderr:.2g}",
        fontsize=10,
    )
    panel.set_ylabel("increase, nats per token")
    panel.tick_params(labelbottom=False)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)


def _scale(panel: Any, drawn: list[float], errors: list[float]) -> None:
    """Make the y axis logarithmic; if a value is 0 or below, linear within the noise.

    `drawn` has the values and the upper ends of the error bars, `errors` the bars' lengths.
    """
    finite = [value for value in drawn if math.isfinite(value)]
    if finite and min(finite) > 0:
        panel.set_yscale("log")
        # Error bars that reach 0 have no end on this axis and would stretch it by decades.
        panel.set_ylim(min(finite) / 3, max(finite) * 2)
        return
    largest = max(map(abs, finite), default=0.0) or 1.0
    noise = median([error for error in errors if math.isfinite(error)] or [0.0])
    decade = round(math.log10(max(noise, largest / 1e4)))
    panel.set_yscale("symlog", linthresh=10.0 ** min(decade, math.floor(math.log10(largest))))
    panel.axhline(0, color=_GREY, linewidth=0.8)


def _draw_influence(panel: Any, statistics: Statistics) -> None:
    size, influence = _marker_size(statistics), _drawable(statistics.block_influence)
    panel.plot(influence, color=_ORANGE, marker="s", markersize=size)
    panel.margins(y=0.15)
    panel.set_ylim(bottom=0)
    panel.set_ylabel("block influence\n(1 - cosine)")
    panel.set_xlabel("layer")
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.grid(alpha=0.3)


def _draw_distances(panel: Any, statistics: Statistics) -> None:
    layers = statistics.num_layers
    distance = statistics.angular_distance
    cells = [
        [row[size] if size < len(row) else math.nan for row in distance]
        for size in range(1, layers + 1)
    ]
    edges = (-0.5, layers - 0.5, 0.5, layers + 0.5)
    image = panel.imshow(
        cells, origin="lower", extent=edges, cmap="viridis", aspect="auto", interpolation="nearest"
    )
    sizes = range(1, layers)
    best = [best_block(distance, size)[0] for size in sizes]
    size = 0.8 * _marker_size(statistics)
    style = {"color": "white", "markeredgecolor": "black", "markersize": size}
    panel.plot(best, sizes, "o", label="minimum for each n", **style)
    panel.set_title("Angular distance over a block, mean over tokens", fontsize=10)
    panel.set_xlabel("start, first layer of the block [start, start + n)")
    panel.set_ylabel("n, layers in the block")
    for axis in (panel.xaxis, panel.yaxis):
        axis.get_major_locator().set_params(integer=True)
    panel.legend(fontsize=8, loc="upper right")
    panel.figure.colorbar(image, ax=panel, label="angular distance / pi")


def _marker_size(statistics: Statistics) -> float:
    return 4.5 if statistics.num_layers <= 40 else 2.5


def _drawable(values: Sequence[float]) -> list[float]:
    """Replace infinities, which break the axis limits, by gaps."""
    return [value if math.isfinite(value) else math.nan for value in values]
