"""Writes report.html, which holds everything it needs, and report.png."""

import base64
import json
import re
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any

from lamina.report.page.content import content
from lamina.report.page.picture import picture
from lamina.report.page.vega import javascript
from lamina.report.runs import Report
from lamina.runtime.files import write_bytes, write_text

PAGE_FILE, PICTURE_FILE = "report.html", "report.png"

SCRIPTS = "elements numbers state ranking charts samples settings page".split()
"""The page's own scripts, in their order."""

_HERE = Path(__file__).parent


def write_page(report: Report, folder: Path) -> None:
    """Write report.html and, if there is a chart, report.png; may raise an OutputError."""
    found = content(report)
    write_text(folder / PAGE_FILE, page(report.title, found))
    if found["charts"]:
        write_bytes(folder / PICTURE_FILE, picture(found["charts"], found["rows"]))


def page(title: str, found: dict[str, Any]) -> str:
    """Return the page; its policy allows its own scripts and style, and nothing else."""
    library = _inline(javascript())
    own = "\n".join(map(_text, (f"{name}.js" for name in SCRIPTS)))
    script, style = _inline(f'(() => {{\n"use strict";\n{own}}})();\n'), _text("page.css")
    parts = {
        "policy": f"default-src 'none'; script-src {_hash(library)} {_hash(script)}; "
        f"style-src {_hash(style)}; base-uri 'none'; form-action 'none'",
        "title": escape(title),
        "style": style,
        "content": json.dumps(found, separators=(",", ":")).replace("<", "\\u003c"),
        "library": library,
        "script": script,
    }
    return re.sub(r"\{(\w+)\}", lambda match: parts[match[1]], _text("page.html"))


def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _inline(script: str) -> str:
    """Keep a script from ending its own element."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _hash(text: str) -> str:
    digest = base64.b64encode(sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
