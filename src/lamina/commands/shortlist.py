"""`lamina shortlist`: one scan, then a healing run for each of the few layers that cost least."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lamina.commands import scan
from lamina.commands.app import run_app
from lamina.config.preflight import preflight
from lamina.depth.statistics import Statistics
from lamina.errors import ConfigError, Ended, LaminaError
from lamina.measure.results import read_result
from lamina.runtime.paths import conf_dir


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def shortlist(config: DictConfig) -> None:
    """Scan, choose, heal."""
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    try:
        preflight(config)
        found = scan.scan_into(config, folder)
        scan.show(found, folder)
        layers = cheapest(found, config.scan.candidates)
        heal(layers, [*job.overrides.task], [*job.overrides.hydra], folder)
    except LaminaError as error:
        raise Ended(str(error)) from error
    show(found, layers, folder)


def cheapest(found: Statistics, number: int) -> list[int]:
    """Return the layers with the least leave-one-out losses, the cheapest first."""
    losses = found.leave_one_out.loss
    return sorted(range(found.num_layers), key=lambda index: (losses[index], index))[:number]


def heal(
    layers: Sequence[int], overrides: Sequence[str], hydra_overrides: Sequence[str], folder: Path
) -> None:
    """Run the sweep, in a process of its own: Hydra composes once in a process.

    Args:
        layers: 0-based layers, one a job.
        overrides: Of the command line.
        hydra_overrides: Its settings of Hydra, such as the launcher.
        folder: The sweep goes below it.
    """
    kept = [o for o in overrides if not o.startswith(("model=", "model.", "selector"))]
    launch = [o for o in hydra_overrides if not o.startswith(("hydra.run.", "hydra.mode"))]
    chosen = ["model=dropped", f"model.layer_to_drop={','.join(map(str, layers))}"]
    sweep = f"hydra.sweep.dir={folder / 'healing'}"
    command = [sys.executable, "-m", "train", "--multirun", *kept, *launch, *chosen, sweep]
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise ConfigError(f"the healing sweep in {folder / 'healing'} failed; see above")


def show(found: Statistics, layers: Sequence[int], folder: Path) -> None:
    """Print both stages side by side."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title="scan, then healing", title_justify="left")
    table.add_column("layer dropped", style="bold")
    for name in ("scan: loss", "evaluation: reduced", "healed"):
        table.add_column(name, justify="right")
    for number, layer in enumerate(layers):
        result = read_result(folder / "healing" / str(number))
        metrics = result["metrics"] if result else {}
        losses = [metrics.get(key) for key in ("reduced_eval_loss", "eval_loss")]
        shown = ["" if loss is None else f"{loss:.4g}" for loss in losses]
        table.add_row(str(layer), f"{found.leave_one_out.loss[layer]:.4g}", *shown)
    Console().print(table)


def main() -> None:
    """Run the command."""
    run_app(shortlist, "config")
