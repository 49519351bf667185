"""The charts of runs: quality against cost, layers dropped, and healing."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from lamina.report.page.columns import COSTS, NATS, Column, measures, value_of
from lamina.report.page.drawing import (
    BLUE,
    GREEN,
    ORANGE,
    RUNS,
    STANDING_COLOUR,
    STANDING_SHAPE,
    STANDING_SIZE,
    Spec,
    axis,
    chart,
    intervals,
    layers,
    level,
    lowest_end,
    numbers,
    points,
    scaled,
    tips,
)
from lamina.report.page.scan_charts import scan_charts
from lamina.report.runs import Report, RunRow

MOST_CURVES = 24
"""More healing curves cannot be told apart."""


def charts(report: Report) -> list[Spec]:
    """Return every chart that has something to show: section, id, title and specification."""
    rows = [row for row in report.ranked if row.is_complete]
    found = [*_quality(rows), *_dropped(rows), *_healing(report.ranked)]
    for number, scan in enumerate(report.scans):
        name = scan.folder if len(report.scans) > 1 else ""
        found += scan_charts(scan.statistics, number, name)
    return found


def _quality(rows: Sequence[RunRow]) -> Iterable[Spec]:
    for measure in measures(rows):
        for cost in COSTS:
            both = [row for row in rows if None not in (measure.of(row), cost.of(row))]
            # A single cost says nothing, such as the layers of runs that drop one each.
            if len({cost.of(row) for row in both}) > 1:
                title = f"{measure.label} against {cost.label.lower()}"
                spec, name = _against(measure, cost, both), f"{measure.key}-{cost.key}"
                yield chart("quality", name, title, spec, measure=measure.label)


def _against(measure: Column, cost: Column, rows: Sequence[RunRow]) -> Spec:
    figure, price = f"datum.values.{measure.key}", f"datum.values.{cost.key}"
    references = [measure.reference(row) for row in rows]
    chances = [measure.chance(row) for row in rows]
    values = [value for value in (*references, *chances) if value is not None]
    values += [value_of(measure.of(row)) for row in rows]
    scale = scaled(values, measure.kind)
    low = f"{figure}.low"
    if math.isfinite(least := lowest_end(scale, values)):
        low = f"isValid({low}) ? max({low}, {least}) : null"
    given = [
        {"filter": f"isValid({figure}) && isValid({price}) && datum.status == 'completed'"},
        {"calculate": f"isValid({figure}.value) ? {figure}.value : {figure}", "as": "y"},
        {"calculate": low, "as": "low"},
        {"calculate": f"{figure}.high", "as": "high"},
        {"calculate": price, "as": "x"},
    ]
    y = numbers("y", measure.axis_title, **scale)
    x = numbers("x", cost.axis_title, scale={"zero": False, "padding": 8}, axis=axis(cost.kind))
    tip = tips(run="name", **{cost.label: "x", measure.label: "y"})
    stepped = "step-before" if cost.is_higher_better else "step-after"
    front = {"type": "line", "color": GREEN, "strokeWidth": 1.5, "interpolate": stepped}
    standing: Spec = {"color": STANDING_COLOUR, "shape": STANDING_SHAPE, "size": STANDING_SIZE}
    drawn = [
        {"transform": _front(measure, cost), "mark": front, "encoding": {"x": x, "y": y}},
        intervals(x, y, "low", "high"),
        points(x, y, {**standing, "tooltip": tip}),
        *level("original", references, y, is_above=measure.is_higher_better),
        *level("chance", chances, y),
    ]
    return {"data": RUNS, "transform": given, "layer": drawn}


def _front(measure: Column, cost: Column) -> list[Spec]:
    """Keep the runs that are better than all cheaper ones: the Pareto front."""
    best, sign = ("max", ">") if measure.is_higher_better else ("min", "<")
    order = [
        {"field": field, "order": "descending" if column.is_higher_better else "ascending"}
        for field, column in (("x", cost), ("y", measure))
    ]
    return [
        {"window": [{"op": best, "field": "y", "as": "best"}], "frame": [None, 0], "sort": order},
        {"window": [{"op": "lag", "field": "best", "as": "before"}], "sort": order},
        {"filter": f"!isValid(datum.before) || datum.y {sign} datum.before"},
    ]


def _dropped(rows: Sequence[RunRow]) -> Iterable[Spec]:
    single = [row for row in rows if len(row.dropped_layers or ()) == 1]
    references = [row.baseline_loss for row in single]
    losses = [loss for row in single for loss in (row.reduced_loss, row.healed_loss)]
    known = [loss for loss in (*losses, *references) if loss is not None]
    if not known:
        return
    dropped = [layer for row in single for layer in row.dropped_layers or ()]
    x = layers("layer", "layer dropped, 0-based", min(dropped), max(dropped))
    y = numbers("healed", f"loss, {NATS}", **scaled(known))
    stages = {"domain": ["after removal", "healed"], "range": [ORANGE, BLUE]}
    fields = {"after_removal": "values.reduced", "healed": "healed"}
    tip = tips(run="name", layer="layer", **fields)
    after, healed = (
        {"color": {"datum": stage, "scale": stages}, "tooltip": tip} for stage in stages["domain"]
    )
    drawn = [
        intervals(x, y, *fields.values()),
        points(x, {**y, "field": "values.reduced"}, after, shape="triangle-up"),
        points(x, y, healed),
        *level("original", references, {**y, "field": "y"}),
    ]
    loss = "datum.values.loss"  # a value of what is not there would end the drawing of all charts
    given = [
        {"filter": "isValid(datum.layer) && datum.status == 'completed'"},
        {"calculate": f"isValid({loss}) ? {loss}.value : null", "as": "healed"},
    ]
    spec = {"data": RUNS, "transform": given, "layer": drawn, "height": 280}
    yield chart("dropped", "dropped", "Loss against the layer dropped", spec)


def _healing(rows: Sequence[RunRow]) -> Iterable[Spec]:
    logged = [entry for row in rows for entry in row.history if entry["eval_loss"] is not None]
    if not logged:
        return
    has_tokens = all(entry["tokens"] is not None for entry in logged)
    unit, title = ("tokens", "tokens read") if has_tokens else ("step", "optimizer steps")
    losses: list[Any] = [entry["eval_loss"] for entry in logged]
    losses += [row.reduced_loss for row in rows if row.history and row.reduced_loss is not None]
    x = numbers(f"curve.{unit}", title, axis=axis("count"))
    y = numbers("curve.loss", f"evaluation loss, {NATS}", **scaled(losses))
    tip = tips(run="name", **{title: f"curve.{unit}"}, loss="curve.loss")
    shared: Spec = {"color": STANDING_COLOUR, "detail": {"field": "place"}, "tooltip": tip}
    given = [
        {"filter": "length(datum.curve.loss) > 0"},
        {"window": [{"op": "row_number", "as": "number"}]},
        {"filter": f"datum.number <= {MOST_CURVES}"},
        {"flatten": [f"curve.{unit}", "curve.loss"]},
    ]
    line: Spec = {"type": "line", "strokeWidth": 1.5, "point": {"size": 12}}
    encoding = {"x": x, "y": y, **shared}
    drawn = [
        {"transform": [{"filter": which}], "mark": line, "encoding": encoding}
        for which in ("datum.standing == 'other'", "datum.standing != 'other'")
    ]
    spec = {"data": RUNS, "transform": given, "layer": drawn, "height": 280}
    yield chart("healing", "healing", f"Evaluation loss against {title}", spec)
