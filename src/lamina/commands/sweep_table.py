"""The table that a sweep ends with: one row a job, from the jobs' result.json files."""

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class SweepTable(Callback):
    """Prints the table when all jobs of a sweep are done."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Read what the jobs wrote, and print it."""
        from rich.console import Console

        from lamina.measure.results import read_result
        from lamina.measure.summary import sweep_summary

        folder = Path(config.hydra.sweep.dir)
        jobs = sorted(folder.glob("*/result.json"), key=lambda path: _number(path.parent.name))
        results = [result for path in jobs if (result := read_result(path.parent))]
        if results:
            Console(file=sys.stdout).print(sweep_summary(results))


def _number(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (sys.maxsize, name)
