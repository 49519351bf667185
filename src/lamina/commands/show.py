"""`lamina show`: print a model's or a run's layers, or a sweep's table, and rebuild its summary."""

import argparse
from pathlib import Path

from lamina.commands.app import errors_in_one_line, parse
from lamina.runtime.paths import load_environment


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="lamina show",
        description="Print a model's layers with their parameters, bytes and dtypes, the layers "
        "that a run kept, or the jobs of a sweep.",
    )
    parser.add_argument(
        "given", metavar="MODEL_RUN_OR_SWEEP", help="hub id, or a folder of a model, run or sweep"
    )
    given = parse(parser).given
    load_environment()
    with errors_in_one_line():
        from rich.console import Console

        from lamina.launch.sweep import MULTIRUN_FILE, rebuild_summary
        from lamina.report.layer_overview import overview

        folder = Path(given).expanduser()
        is_sweep = (folder / MULTIRUN_FILE).is_file()
        Console().print(rebuild_summary(folder) if is_sweep else overview(given))
