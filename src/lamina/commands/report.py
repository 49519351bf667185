"""`lamina report`: compare runs, sweeps, scans and evaluations from the files that they wrote."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.commands.app import errors_in_one_line, parse
from lamina.runtime.console import console, printable
from lamina.runtime.files import refuse_unwritable
from lamina.runtime.paths import short_path

if TYPE_CHECKING:
    from lamina.report.runs import Report

CALLS = """\
usual calls:
  lamina report SWEEP                      again, from the files of its jobs alone
  lamina report RUN                        one run
  lamina report SWEEP_A SWEEP_B RUN --output DIR
  lamina report SCAN --output DIR          also of lamina shortlist
  lamina report EVALUATION RUN --output DIR
"""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="lamina report",
        description="Compare runs, sweeps, scans and evaluations from their files alone, and write "
        "report.html, report.png, report.md and report.csv.",
        epilog=CALLS,
    )
    parser.add_argument("folders", metavar="SWEEP_OR_RUN", nargs="+", type=Path)
    parser.add_argument("--output", metavar="DIR", type=Path, help="default: the first folder")
    given = parse(parser)
    with errors_in_one_line():
        from lamina.report.report_files import write_report
        from lamina.report.sweep_table import SweepTable

        output = given.output or given.folders[0]
        report = report_of(given.folders)
        refuse_unwritable(output, "--output")
        write_report(report, output)
        if report.rows:
            console().print(SweepTable(report.ranked))
        for path, reason in report.broken:
            sys.stderr.write(printable(f"cannot be used: {path}: {reason}\n"))
        sys.stdout.write(f"{short_path(output)}/report.html, report.png, report.md, report.csv\n")


def read_runs(*folders: str | Path) -> Any:
    """Return a table of runs and of the jobs of sweeps, the best first.

    It is a pandas DataFrame where pandas is installed, else a list of dicts, with the columns of
    report.csv. Raises ConfigError if a folder holds nothing of Lamina's.
    """
    from lamina.report.frames import frame_or_rows
    from lamina.report.report_files import figures

    return frame_or_rows(dict(figures(row)) for row in report_of([*map(Path, folders)]).ranked)


def report_of(folders: Sequence[Path]) -> "Report":
    """Read a report, with the jobs that sweeps have yet to run."""
    from lamina.launch.sweep import recorded_jobs
    from lamina.report.reading import read_report

    return read_report([folder.expanduser() for folder in folders], recorded_jobs)
