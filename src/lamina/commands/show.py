"""`lamina show MODEL_RUN_OR_SWEEP`: which layers there are, which stayed, and what they weigh.

Of a sweep it shows the table, and writes the summary again: nothing else has to be alive.
"""

import argparse
from pathlib import Path

from lamina.commands.app import said_in_one_line
from lamina.runtime.paths import load_environment


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="lamina show",
        description="Print a model's layers with their parameters, bytes and types; of a run, also "
        "which layers stayed; of a sweep, its jobs.",
    )
    parser.add_argument(
        "given", metavar="MODEL_RUN_OR_SWEEP", help="hub id, or folder of a model, run or sweep"
    )
    asked = parser.parse_args()
    load_environment()
    with said_in_one_line():
        from rich.console import Console

        from lamina.launch.sweep import MULTIRUN_FILE, tabled
        from lamina.report.layer_overview import overview

        folder = Path(asked.given).expanduser()
        is_sweep = (folder / MULTIRUN_FILE).is_file()
        Console().print(tabled(folder) if is_sweep else overview(asked.given))
