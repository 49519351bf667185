"""The charts of a scan: each layer and each block of layers left out."""

import math
from collections.abc import Iterable

from lamina.depth.statistics import Statistics
from lamina.report.page.drawing import (
    BLUE,
    Spec,
    chart,
    intervals,
    layers,
    lowest_end,
    numbers,
    points,
    scaled,
    tips,
)
from lamina.report.runs import Scan

PI = "\N{GREEK SMALL LETTER PI}"


def scan_charts(number: int, scan: Scan, *, is_named: bool) -> Iterable[Spec]:
    """Return the charts of a scan; its folder names it where there are several."""
    name = f" ({scan.folder})" if is_named else ""
    title = f"Loss without each layer{name}"
    yield chart("scan", f"layers-{number}", title, _left_out(scan.statistics))
    title = f"Angular distance over each block{name}"
    yield chart("scan", f"blocks-{number}", title, _blocks(scan.statistics))


def _left_out(scores: Statistics) -> Spec:
    one = scores.leave_one_out
    rises = [loss - scores.baseline_loss for loss in one.loss]
    finite = [rise for rise in rises if math.isfinite(rise)]
    scale = scaled(finite)
    least = lowest_end(scale, finite)
    drawn = [
        {
            "layer": layer,
            "rise": rise,
            "low": max(rise - 2 * error, least),
            "high": rise + 2 * error,
        }
        for layer, (rise, error) in enumerate(zip(rises, one.delta_stderr, strict=True))
    ]
    x = layers("layer", "layer left out, 0-based", 0, scores.num_layers - 1)
    y = numbers("rise", "rise of the loss, nats per token", **scale)
    line = {"type": "line", "color": BLUE, "strokeWidth": 1.5}
    marks = [
        {"mark": line, "encoding": {"x": x, "y": y}},
        intervals(x, y, "low", "high", BLUE),
        points(
            x, y, {"color": {"value": BLUE}, "tooltip": tips(layer="layer", rise="rise")}, size=45
        ),
    ]
    return {"data": {"values": drawn}, "layer": marks}


def _blocks(scores: Statistics) -> Spec:
    cells = [
        {"start": start, "n": size, "distance": distance}
        for start, row in enumerate(scores.angular_distance)
        for size, distance in enumerate(row)
        if size and math.isfinite(distance)
    ]
    sparse = {"type": "ordinal", "axis": {"labelOverlap": "greedy", "grid": False, "labelAngle": 0}}
    legend = {"title": f"angular distance / {PI}", "orient": "top", "gradientLength": 200}
    colour = numbers("distance", "", scale={"scheme": "viridis"}, legend=legend)
    return {
        "data": {"values": cells},
        "mark": "rect",
        "encoding": {
            "x": {"field": "start", "title": "start, first layer of the block", **sparse},
            "y": {"field": "n", "title": "n, layers in the block", "sort": "descending", **sparse},
            "color": colour,
            "tooltip": tips(start="start", n="n", distance="distance"),
        },
    }
