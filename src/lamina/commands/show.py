"""`lamina show`: print anything that Lamina wrote; a sweep's report is rewritten from its jobs."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.commands.app import errors_in_one_line, parse
from lamina.measure.results import SCAN_FILE
from lamina.runtime.console import console
from lamina.runtime.paths import load_environment, short_path

if TYPE_CHECKING:
    from rich.console import RenderableType

CALLS = """\
usual calls:
  lamina show Qwen/Qwen3-8B                  a model of the hub: only its headers are read
  lamina show PATH                           a model's folder, cut, exported or any other
  lamina show outputs/2026-11-27/12-00-00    a run
  lamina show SWEEP                          its table, also while it still runs
  lamina show SCAN                           a scan's scores
"""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="lamina show",
        description="Print a model's layers with their parameters, bytes and dtypes, a run's "
        "layers and figures, the jobs of a sweep, an evaluation, or the scores of a scan.",
        epilog=CALLS,
    )
    parser.add_argument(
        "given",
        metavar="WHAT",
        help="hub id, or the folder of a model, run, sweep, evaluation or scan",
    )
    given = parse(parser).given
    with errors_in_one_line():
        load_environment()
        for part in shown(given):
            console().print(part)


def shown(given: str) -> "Iterator[RenderableType]":
    """Yield the tables of a hub id, or of a folder that Lamina wrote."""
    from rich.text import Text

    from lamina.depth.statistics import Statistics
    from lamina.launch.sweep import rebuild_report
    from lamina.measure.results import MULTIRUN_FILE, RESULT_FILE, read_result
    from lamina.measure.tasks.files import EVALUATION_FILE, read_evaluation
    from lamina.report.evaluation_table import evaluation_rows
    from lamina.report.layer_overview import overview
    from lamina.report.run_summary import figures_table, summary
    from lamina.report.scan_report import scan_table
    from lamina.weights.source import made_of, read_json

    folder = Path(given).expanduser()
    result, healing = read_result(folder), folder / "healing"
    if (folder / MULTIRUN_FILE).is_file():
        yield rebuild_report(folder)
    elif (folder / EVALUATION_FILE).is_file():
        yield figures_table([*evaluation_rows(read_evaluation(folder))])
    elif (folder / SCAN_FILE).is_file():
        with made_of(folder / SCAN_FILE):
            content = read_json(folder / SCAN_FILE)
            yield scan_table(Statistics.from_dict(content), content["provenance"]["dtype"])
        if (healing / MULTIRUN_FILE).is_file():  # of lamina shortlist
            yield rebuild_report(healing)
    elif result and not result["final"]:
        name = result.get("name") or " ".join(result["overrides"])
        yield Text(f"{name}: {result['status']}", style="bold")
        yield Text(result["error"] or "no final/ yet")
    else:
        yield overview(given)
        if result:
            with made_of(folder / RESULT_FILE):
                yield summary(result, short_path(folder))
