"""The charts of a scan: each layer and each block of layers left out."""

import math
from collections.abc import Iterable

from lamina.depth.statistics import Statistics
from lamina.report.page.drawing import (
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    Spec,
    axis,
    chart,
    intervals,
    layers,
    lowest_end,
    numbers,
    points,
    scaled,
    tips,
)
from lamina.report.scan_report import best_block, increases

PI = "\N{GREEK SMALL LETTER PI}"

LAYER = "layer left out, 0-based"


def scan_charts(scores: Statistics, number: int = 0, name: str = "") -> Iterable[Spec]:
    """Return the charts of a scan; its folder names it where there are several."""
    named = f" ({name})" if name else ""
    error = "" if math.isnan(scores.baseline_stderr) else f" ± {scores.baseline_stderr:.2g}"
    title = f"Loss without each layer, above {scores.baseline_loss:.5g}{error}{named}"
    yield chart("scan", f"layers-{number}", title, _left_out(scores))
    title = f"Angular distance over each block{named}"
    yield chart("scan", f"blocks-{number}", title, _blocks(scores))
    yield chart("scan", f"influence-{number}", f"Block influence{named}", _influence(scores))


def _left_out(scores: Statistics) -> Spec:
    rises = {"layer": [*increases(scores)]}
    for part, left_out in scores.sublayer.items():
        rises[part] = [loss - scores.baseline_loss for loss in left_out.loss]
    finite = [rise for part in rises.values() for rise in part if math.isfinite(rise)]
    scale = scaled(finite)
    least = lowest_end(scale, finite)
    errors = [2 * error for error in scores.leave_one_out.delta_stderr]
    values = [
        {"layer": layer, "part": part, "rise": rise}
        | ({"low": max(rise - end, least), "high": rise + end} if part == "layer" else {})
        for part, drawn in rises.items()
        for layer, (rise, end) in enumerate(zip(drawn, errors, strict=True))
    ]
    x = layers("layer", LAYER, 0, scores.num_layers - 1)
    y = numbers("rise", "rise of the loss, nats per token", **scale)
    colours = {"domain": [*rises], "range": [BLUE, GREEN, PINK]}
    colour: Spec = {"field": "part", "type": "nominal", "title": "without", "scale": colours}
    colour |= {} if scores.sublayer else {"legend": None}
    tip = tips(layer="layer", without="part", rise="rise")
    line = {"type": "line", "strokeWidth": 1.5}
    marks = [
        {"mark": line, "encoding": {"x": x, "y": y, "color": colour}},
        intervals(x, y, "low", "high", BLUE),
        points(x, y, {"color": colour, "tooltip": tip}, size=45),
    ]
    return {"data": {"values": values}, "layer": marks}


def _influence(scores: Statistics) -> Spec:
    found = enumerate(scores.block_influence)
    values = [{"layer": layer, "influence": influence} for layer, influence in found]
    x = layers("layer", LAYER, 0, scores.num_layers - 1)
    y = numbers("influence", "1 - cosine of input and output", axis=axis("number"))
    tip = tips(layer="layer", influence="influence")
    line = {"type": "line", "strokeWidth": 1.5, "color": ORANGE}
    marks = [
        {"mark": line, "encoding": {"x": x, "y": y}},
        points(x, y, {"color": {"value": ORANGE}, "tooltip": tip}, size=45),
    ]
    return {"data": {"values": values}, "layer": marks}


def _blocks(scores: Statistics) -> Spec:
    distances = scores.angular_distance
    best = {(best_block(distances, size)[0], size) for size in range(1, scores.num_layers)}
    cells = [
        {"start": start, "n": size, "distance": distance, "best": (start, size) in best}
        for start, row in enumerate(distances)
        for size, distance in enumerate(row)
        if size and math.isfinite(distance)
    ]
    ticks = {"labelOverlap": "greedy", "grid": False, "labelAngle": 0}
    sparse: Spec = {"type": "ordinal", "axis": ticks}
    x = {"field": "start", "title": "start, first layer of the block", **sparse}
    y = {"field": "n", "title": "n, layers in the block", "sort": "descending", **sparse}
    title = f"angular distance / {PI}; dots: the least for each n"
    legend = {"title": title, "orient": "top", "gradientLength": 200, "titleLimit": 400}
    colour = numbers("distance", "", scale={"scheme": "viridis"}, legend=legend)
    tip = tips(start="start", n="n", distance="distance")
    dot = {"type": "point", "filled": True, "size": 22, "fill": "#FFFFFF", "stroke": "#000000"}
    return {
        "data": {"values": cells},
        "encoding": {"x": x, "y": y},
        "layer": [
            {"mark": "rect", "encoding": {"color": colour, "tooltip": tip}},
            {"transform": [{"filter": "datum.best"}], "mark": {**dot, "strokeWidth": 1}},
        ],
    }
