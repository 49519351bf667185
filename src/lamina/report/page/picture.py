"""Charts as a PNG: report.png, and scan.png beside a scan."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lamina.depth.statistics import Statistics
from lamina.report.page.drawing import CONFIG
from lamina.report.page.scan_charts import scan_charts
from lamina.report.page.vega import png
from lamina.report.scan_report import scored
from lamina.runtime.files import write_bytes

SIZE = {"width": 440, "height": 260}
"""Of a chart's plot."""

SCALE = 1.5
"""Pixels of the picture for one of a plot."""

PICTURED = 4
"""Charts in a picture."""


def draw_scan(scores: Statistics, path: Path) -> None:
    """Write a scan's charts as a PNG; may raise an OutputError."""
    write_bytes(path, picture([*scan_charts(scores)], title=scored(scores)))


def picture(
    charts: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]] = (), title: str = ""
) -> bytes:
    """Return one chart of each section, and others of the first ones, as a PNG."""
    sections = [chart["section"] for chart in charts]
    first = [place for place, name in enumerate(sections) if sections.index(name) == place]
    rest = [place for place in range(len(charts)) if place not in first]
    chosen = [charts[place] for place in sorted([*first, *rest][:PICTURED])]
    panels = [{**chart["spec"], **SIZE, "title": chart["title"]} for chart in chosen]
    spec = {
        "config": {**CONFIG, "background": "white", "padding": 16},
        "title": {"text": title, "fontWeight": "normal"},
        "datasets": {"runs": rows},
        "concat": [{key: panel[key] for key in panel if key != "config"} for panel in panels],
        "columns": 2,
        "spacing": 32,
        "resolve": {"scale": {"color": "independent", "shape": "independent"}},
    }
    return png(spec, SCALE)
