"""Charts as a PNG: report.png, and scan.png beside a scan."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lamina.depth.statistics import Statistics
from lamina.report.page.drawing import CONFIG
from lamina.report.page.scan_charts import scan_charts
from lamina.report.scan_report import scored
from lamina.runtime.files import finite, write_bytes

SIZE = {"width": 440, "height": 260}
"""Of a chart's plot."""

SCALE = 1.5
"""Pixels of the picture for one of a plot."""

SIGNATURE = b"\x89PNG\r\n\x1a\n"

PICTURED = 4
"""Charts in a picture."""


def draw_scan(scores: Statistics, path: Path) -> None:
    """Write a scan's charts as a PNG; may raise an OutputError."""
    write_bytes(path, picture([*scan_charts(scores)], title=scored(scores)))


def picture(
    charts: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]] = (), title: str = ""
) -> bytes:
    """Return one chart of each section, and others of the first ones, as a PNG."""
    import vl_convert

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
    return _compressed(vl_convert.vegalite_to_png(finite(spec), scale=SCALE))


def _compressed(png: bytes) -> bytes:
    """Compress a PNG's pixels again: the converter leaves them three times as large."""
    parts, pixels, start = [], b"", len(SIGNATURE)
    while start < len(png):
        size, kind = struct.unpack(">I4s", png[start : start + 8])
        content = png[start + 8 : start + 8 + size]
        if kind == b"IDAT":
            pixels += content
        else:
            parts.append((kind, content))
        start += size + 12
    parts.insert(-1, (b"IDAT", zlib.compress(zlib.decompress(pixels), 9)))
    return SIGNATURE + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )
