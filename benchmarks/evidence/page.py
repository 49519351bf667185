"""docs/results.md, its figures and the README's answers, from the committed result files alone.

    python benchmarks/evidence/page.py [--results DIR] [--docs DIR] [--readme FILE] [--check]

Shows: which layers, which healing, how far, whether the scan predicts healing, and the cost. The
same files give the same pages, to the byte. `--check` fails if a page differs from what it would
write; without result files there is none. Peer: the original model, beside every row.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import record
from first import answers, first_screen
from parts import PARTS
from sections import NAME, SECTIONS

from lamina.report.report_files import markdown_table
from lamina.report.tables import PROVENANCE, provenance_lines
from lamina.units import format_duration

HERE = Path(__file__).resolve().parent
MARKED = re.compile(r"(?<=<!-- results: page.py writes them -->\n).*?(?=<!-- end -->)", re.S)
"""The README's answers."""

FRONT = f"{NAME}-loss-bytes.svg"
"""The figure that the README shows, once the part far is there."""


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--docs", type=Path, default=HERE.parents[1] / "docs")
    parser.add_argument("--readme", type=Path, default=HERE.parents[1] / "README.md")
    parser.add_argument("--check", action="store_true", help="fail if a page is another one")
    options = parser.parse_args()
    found = {part: options.results / f"{part}.json" for part in PARTS}
    parts = {part: record.read(path) for part, path in found.items() if path.is_file()}
    if not parts:
        return
    made = {options.docs / name: text for name, text in files(parts).items()}
    shown = [answers(parts)]
    if options.docs / FRONT in made:
        shown.append(f"![Loss against size: the Pareto front](docs/{FRONT})")
    block = "\n\n".join(shown) + "\n"
    made[options.readme] = MARKED.sub(lambda _: block, options.readme.read_text("utf-8"))
    for path, text in made.items():
        if not options.check:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text("utf-8") != text:
            sys.exit(f"error: {path} is not what its result files give: run page.py")


def files(parts: Mapping[str, Any]) -> dict[str, str]:
    """Return the page and its figures by their file names."""
    drawn: dict[str, str] = {}
    sections = [each for part in parts for each in SECTIONS[part](parts[part], drawn)]
    last = [each for section in (_cost, _card, _protocols, _made) for each in section(parts)]
    page = "\n\n".join([*first_screen(parts), *sections, *last])
    return {f"{NAME}.md": page + "\n", **drawn}


def _cost(parts: Mapping[str, Any]) -> Iterator[str]:
    yield "## Cost"
    lines = [
        (part, name, format_duration(each["seconds"]), format_duration(each["cpu_seconds"]))
        for part, found in parts.items()
        for name, each in found["costs"].items()
    ]
    every = [each for found in parts.values() for each in found["costs"].values()]
    sums = [sum(each[kind] for each in every) for kind in ("seconds", "cpu_seconds")]
    lines.append(("all", "", format_duration(sums[0]), format_duration(sums[1])))
    yield markdown_table(("part", "sweep", "wall clock", "CPU"), lines)


def _card(parts: Mapping[str, Any]) -> Iterator[str]:
    if "heal" in parts:
        yield "## The model card of the best healing"
        yield f"~~~~markdown\n{parts['heal']['card']}~~~~"


def _protocols(parts: Mapping[str, Any]) -> Iterator[str]:
    yield "## How each task was measured"
    lines = [
        (part, task, *(f"{way.pop(key)}" for key in ("kind", "items")), _setting(way))
        for part, found in parts.items()
        for task, ways in found["protocols"].items()
        for way in map(dict, ways)
    ]
    yield markdown_table(("part", "task", "kind", "items", "protocol"), lines)


def _setting(way: Mapping[str, Any]) -> str:
    given = {key: value for key, value in way.items() if value is not None and key != "hash"}
    return ", ".join(f"{key}={value}" for key, value in given.items()) + f", {way['hash'][:12]}"


def _made(parts: Mapping[str, Any]) -> Iterator[str]:
    yield "## Made with"
    reports = [report for part in parts.values() for report in part["reports"].values()]
    found = [each for report in reports for each in report.provenances]
    yield markdown_table(PROVENANCE, [*provenance_lines(found)])


if __name__ == "__main__":
    main()
