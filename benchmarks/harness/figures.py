"""What every benchmark has: options, a table, aims and a JSON file of its figures."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Aim:
    """A figure and its upper limit."""

    name: str
    value: float
    limit: float

    @property
    def missed(self) -> bool:
        """Whether the figure is too large, or not a number."""
        return not self.value <= self.limit


def options(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, too")
    parser.add_argument("--check", action="store_true", help="fail if an aim is missed")
    return parser


def at_least(minimum: int) -> Callable[[str], int]:
    """Return an argparse type: an integer of at least `minimum`."""

    def number(text: str) -> int:
        if int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text} is below {minimum}")
        return int(text)

    return number


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], notes: str) -> None:
    """Print a table whose first column is text and whose other columns are figures."""
    table = Table(title=title, title_justify="left", caption=notes, caption_justify="left")
    table.add_column(header[0])
    for name in header[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def finish(
    figures: Mapping[str, Any], aims: Sequence[Aim], json_file: Path | None, check: bool
) -> None:
    """Write the JSON file and name the missed aims; with `check`, exit with 1 if there are any."""
    if json_file is not None:
        listed = [{**asdict(aim), "missed": aim.missed} for aim in aims]
        content = {"machine": machine(), **figures, "aims": listed}
        json_file.write_text(json.dumps(content, indent=2) + "\n")
    missed = [aim for aim in aims if aim.missed]
    for aim in missed:
        print(f"missed: {aim.name} is {aim.value:.4g}, the aim is at most {aim.limit:g}")
    if check and missed:
        sys.exit(1)


def machine() -> dict[str, Any]:
    """Return what the figures depend on besides the code."""
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
