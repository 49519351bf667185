"""`lamina scan`: score every layer of a model in one sweep over its weights."""

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig

from lamina.commands.app import run_app
from lamina.config.preflight import preflight
from lamina.depth.statistics import Statistics, statistics_of
from lamina.errors import ConfigError, Ended, LaminaError
from lamina.runtime.files import write_json
from lamina.runtime.paths import conf_dir
from lamina.scan.cached import whole
from lamina.weights.source import resolve


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def scan(config: DictConfig) -> None:
    """Scan one model."""
    job = HydraConfig.get()
    try:
        preflight(config)
        found = scan_into(config, Path(job.runtime.output_dir))
    except LaminaError as error:
        if job.mode == RunMode.RUN:
            raise Ended(str(error)) from error
        sys.stderr.write(f"error in job {job.job.num}: {error}\n")
        raise
    show(found, Path(job.runtime.output_dir))


def scan_into(config: DictConfig, folder: Path) -> Statistics:
    """Scan, and write scan.json, scan.csv and scan.png.

    Raises:
        LaminaError: The model, the text or the settings do not allow it.
    """
    from lamina.report.scan_chart import draw
    from lamina.report.scan_report import write_csv

    if config.dry_run:
        raise ConfigError("dry_run=true goes with training: a scan trains nothing, leave it out")
    run = instantiate(config)
    content = run.scores(resolve(run.model_name), whole(run.data)).scan()
    found = statistics_of(content)
    write_json(folder / "scan.json", content)
    write_csv(found, folder / "scan.csv")
    draw(found, folder / "scan.png")
    return found


def show(found: Statistics, folder: Path) -> None:
    """Print the scores, and where they are."""
    from rich.console import Console

    from lamina.report.scan_report import scan_table

    console = Console()
    console.print(scan_table(found))
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    console.print(f"{shown}/scan.json, scan.csv, scan.png", style="dim", highlight=False)


def main() -> None:
    """Run the command."""
    run_app(scan, "config")
