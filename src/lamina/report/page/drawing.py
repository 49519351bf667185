"""What all charts share: colours, axes and scales, as parts of Vega-Lite specifications."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

# Okabe and Ito's palette, distinguishable by the colour-blind; page.css adapts it to dark pages.
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
GREY = "#767676"

HEIGHT = 230

FAR = 20
"""Values whose ratio is larger get a logarithmic axis."""

_STANDINGS = ["best", "within noise", "other"]
_STANDING: dict[str, Any] = {"field": "standing", "type": "nominal", "legend": None}
STANDING_COLOUR = _STANDING | {"scale": {"domain": _STANDINGS, "range": [ORANGE, BLUE, GREY]}}
STANDING_SHAPE = _STANDING | {
    "scale": {"domain": _STANDINGS, "range": ["diamond", "circle", "circle"]}
}
STANDING_SIZE = {"value": 60, "condition": {"test": "datum.standing == 'best'", "value": 130}}

RUNS = {"name": "runs"}
"""The page gives each chart the rows that its table shows."""

CONFIG = {
    # The page names each chart as one picture; its table has the figures.
    "aria": False,
    "mark": {"aria": False},
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "gridColor": "#E3E3E3",
        "domainColor": "#999999",
        "tickColor": "#999999",
        "labelColor": "#333333",
        "titleColor": "#333333",
        "titlePadding": 8,
        "labelOverlap": True,
        "labelSeparation": 8,
    },
    "axisY": {"domain": False, "ticks": False, "tickCount": 5},
    "axisX": {"grid": False, "tickCount": 6},
    "legend": {
        "orient": "top",
        "title": None,
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "labelColor": "#333333",
        "symbolStrokeWidth": 2,
    },
    "title": {"fontSize": 13, "anchor": "start", "color": "#333333", "offset": 10},
}

Spec = dict[str, Any]


def chart(section: str, name: str, title: str, spec: Spec, **others: Any) -> Spec:
    """Return what the page needs to draw a chart."""
    complete = {"height": HEIGHT, "config": CONFIG, **spec}
    return {"section": section, "id": f"chart-{name}", "title": title, "spec": complete, **others}


def numbers(field: str, title: str, **others: Any) -> Spec:
    """Return the encoding of a field that holds numbers."""
    return {"field": field, "type": "quantitative", "title": title, **others}


def layers(field: str, title: str, first: int, last: int) -> Spec:
    """Return the encoding of 0-based layer indices."""
    stride = max(1, round((last - first) / 12))
    ticks = {"values": list(range(first, last + 1, stride)), "format": "d", "grid": True}
    return numbers(field, title, scale={"zero": False, "padding": 10}, axis=ticks)


def points(x: Spec, y: Spec, others: Spec, *, size: int = 60, shape: str = "circle") -> Spec:
    """Return a layer of filled points."""
    mark = {"type": "point", "filled": True, "size": size, "shape": shape, "opacity": 0.9}
    order = {"field": "place", "sort": "descending"}  # the best is drawn last
    return {"mark": mark, "encoding": {"x": x, "y": y, "order": order, **others}}


def intervals(x: Spec, y: Spec, low: str, high: str, colour: str = GREY) -> Spec:
    """Return a layer of vertical lines between two fields."""
    return {
        "transform": [{"filter": f"isValid(datum.{low}) && isValid(datum.{high})"}],
        "mark": {"type": "rule", "color": colour, "opacity": 0.6},
        "encoding": {"x": x, "y": {**y, "field": low}, "y2": {"field": high}},
    }


def level(
    label: str, values: Iterable[float | None], y: Spec, *, is_above: bool = False
) -> list[Spec]:
    """Return a dashed line at a figure, such as the original's, if all runs have the same.

    Its label lies above or below it, where there are fewer points.
    """
    found = {value for value in values if value is not None}
    if len(found) != 1:
        return []
    value = found.pop()
    dashed = {"mark": {"type": "rule", "strokeDash": [4, 4], "color": GREY}, "encoding": {"y": y}}
    text: Spec = {"type": "text", "align": "right", "baseline": "bottom" if is_above else "top"}
    text |= {"dy": -3 if is_above else 4, "color": "#333333"}
    named = {"x": {"value": "width"}, "y": y, "text": {"field": "label"}}
    data = {"values": [{y["field"]: value, "label": f"{label} {value:.4g}"}]}
    return [{"data": data, "layer": [dashed, {"mark": text, "encoding": named}]}]


def tips(**titles: Any) -> list[Spec]:
    """Return what is shown beside the pointer: fields by their titles, `_` for a space."""
    return [{"field": field, "title": title.replace("_", " ")} for title, field in titles.items()]


def scaled(values: Sequence[float], kind: str = "number") -> Spec:
    """Return the scale and axis of values: logarithmic, or symlog, where they are far apart."""
    least, most = min(values, default=0.0), max(values, default=0.0)
    if least > 0 and most / least > FAR:
        scale: Spec = {"type": "log", "nice": False, "padding": 16}
        ticks = _ticks(least, most)
        return {"scale": scale, "axis": {**axis(kind), "values": ticks, "tickCount": len(ticks)}}
    sizes = sorted(abs(value) for value in values if value)
    if least <= 0 and sizes and sizes[-1] / sizes[len(sizes) // 2] > FAR:
        constant = sizes[len(sizes) // 4]
        return {"scale": {"type": "symlog", "constant": constant}, "axis": axis(kind)}
    return {"scale": {"zero": False, "padding": 16}, "axis": axis(kind)}


def lowest_end(scale: Spec, values: Sequence[float]) -> float:
    """Return where intervals end at the latest: a logarithmic scale has no place for 0."""
    return min(values) / 2 if scale["scale"].get("type") == "log" else -math.inf


def _ticks(least: float, most: float) -> list[float]:
    """Return round numbers over a logarithmic axis: more of them where it has few decades."""
    decades = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    heads = (1, 2, 5) if len(decades) <= 4 else (1,)
    stride = max(1, round(len(decades) / 7))
    ticks = [head * 10.0**decade for decade in decades[::stride] for head in heads]
    return [tick for tick in ticks if least * 0.8 <= tick <= most * 1.25]


def axis(kind: str) -> Spec:
    """Format an axis as the table formats its column."""
    if kind == "share":
        return {"format": ".0%"}
    if kind in ("count", "bytes"):
        unit = " + 'B'" if kind == "bytes" else ""
        return {
            "labelExpr": f"replace(format(datum.value, '~s'), 'G', '{'G' if unit else 'B'}'){unit}"
        }
    return {"format": "~g"} if kind == "number" else {"format": "d", "tickMinStep": 1}
