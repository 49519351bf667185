"""`lamina show MODEL_OR_RUN`: which layers there are, which stayed, and what they weigh."""

import argparse

from lamina.commands.entry import said_in_one_line
from lamina.config.paths import load_environment


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="lamina show",
        description="Print a model's layers with their parameters, bytes and types; of a run, also "
        "which layers stayed.",
    )
    parser.add_argument("given", metavar="MODEL_OR_RUN", help="hub id, model folder or run folder")
    asked = parser.parse_args()
    load_environment()
    with said_in_one_line():
        from rich.console import Console

        from lamina.measure.overview import overview

        Console().print(overview(asked.given))
