"""`lamina show MODEL_RUN_OR_SWEEP`: a model's layers, a run's kept layers, or a sweep's table.

For a sweep it also rewrites the summary from the jobs' files.
"""

import argparse
from pathlib import Path

from lamina.commands.app import errors_in_one_line
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
    given = parser.parse_args().given
    load_environment()
    with errors_in_one_line():
        from rich.console import Console

        from lamina.launch.sweep import MULTIRUN_FILE, rebuild_summary
        from lamina.report.layer_overview import overview

        folder = Path(given).expanduser()
        is_sweep = (folder / MULTIRUN_FILE).is_file()
        Console().print(rebuild_summary(folder) if is_sweep else overview(given))
