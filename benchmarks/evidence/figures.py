"""The page's figures as SVG, drawn by Vega from the charts of lamina.report."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import vl_convert

from lamina.measure.statistics import CONFIDENCE, RESAMPLES, SEED, Array
from lamina.measure.tasks.figures import HALF_WIDTH
from lamina.report.page.drawing import (
    BLUE,
    CONFIG,
    ORANGE,
    Spec,
    chart,
    intervals,
    layers,
    level,
    numbers,
    points,
    scaled,
)
from lamina.report.page.picture import SIZE
from lamina.report.runs import Report
from lamina.scan.scores import kendall_tau

FONT = "Liberation Sans"
"""Vega's converter brings it along: the same figure on any machine."""


def figure(name: str, made: Spec, rows: Sequence[Spec], drawn: dict[str, str]) -> str:
    """Draw a chart of the report into `drawn`, and return the line that shows it."""
    spec = {
        **SIZE,
        **made["spec"],
        "config": {**CONFIG, "background": "white", "padding": 8, "font": FONT},
        "datasets": {"runs": rows},
    }
    drawn[f"{name}.svg"] = vl_convert.vegalite_to_svg(spec) + "\n"
    return f"![{made['title']}]({name}.svg)"


def agreement(rises: Mapping[str, Sequence[float]]) -> list[tuple[str, str, float]]:
    """Return Kendall's tau of the layers' rankings for each pair of texts."""
    return [(a, b, kendall_tau(rises[a], rises[b])) for a, b in combinations(rises, 2)]


def before_and_after(report: Report) -> list[tuple[float, float]]:
    """Return each run's loss before and after healing."""
    both = [(row.reduced_loss, row.healed_loss) for row in report.rows if row.is_complete]
    return [(before, after) for before, after in both if before is not None and after is not None]


def prediction(reports: Mapping[str, Report]) -> list[list[str]]:
    """Return a line for each kind of removal: how well the loss before ranks the loss after."""
    lines = []
    for name, report in reports.items():
        pairs = np.array(before_and_after(report))
        drawn = np.random.default_rng(SEED).integers(len(pairs), size=(RESAMPLES // 10, len(pairs)))
        taus = [_tau(pairs[each]) for each in drawn]
        low, high = np.quantile(taus, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        lines.append([name, f"{len(pairs)}", f"{_tau(pairs):.2f} ({low:.2f} to {high:.2f})"])
    return lines


def _tau(pairs: Array) -> float:
    before, after = pairs.T.tolist()
    return kendall_tau(before, after)


def predicted(reports: Mapping[str, Report]) -> Spec:
    """Return the chart of the loss after healing against the loss before."""
    both = [pair for report in reports.values() for pair in before_and_after(report)]
    values = [
        {"removed": name, "before": before, "after": after, "place": 0}
        for name, report in reports.items()
        for before, after in before_and_after(report)
    ]
    x, y = (
        numbers(field, f"loss {field} healing, nats per token", **scaled(column))
        for field, column in zip(("before", "after"), zip(*both, strict=True), strict=True)
    )
    colours = {"domain": [*reports], "range": [BLUE, ORANGE]}
    colour: Spec = {"field": "removed", "type": "nominal", "scale": colours}
    layer = points(x, y, {"color": colour})
    title = "Loss after healing against the loss before"
    return chart("predict", "predict", title, {"data": {"values": values}, "layer": [layer]})


def removal_curve(report: Report) -> Spec:
    """Return the chart of the loss without healing against the layers that stay."""
    rows = [row for row in report.ranked if row.layers and row.healed_loss is not None]
    values = [
        {
            "layers": row.layers,
            "loss": row.healed_loss,
            "low": (row.healed_loss or 0) - HALF_WIDTH * (row.healed_stderr or 0),
            "high": (row.healed_loss or 0) + HALF_WIDTH * (row.healed_stderr or 0),
            "place": 0,
        }
        for row in rows
    ]
    kept = [row.layers or 0 for row in rows]
    x = layers("layers", "layers that stay", min(kept), max(kept))
    y = numbers("loss", "loss, nats per token", **scaled([row.healed_loss or 0 for row in rows]))
    line = {"mark": {"type": "line", "color": BLUE}, "encoding": {"x": x, "y": y}}
    drawn = [line, intervals(x, y, "low", "high"), points(x, y, {"color": {"value": BLUE}})]
    drawn += level("original", [row.baseline_loss for row in rows], y)
    return chart(
        "curve", "curve", "Loss without healing", {"data": {"values": values}, "layer": drawn}
    )
