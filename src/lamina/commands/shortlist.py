"""`lamina shortlist`: scan, then heal without each of the cheapest layers in turn."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from lamina.commands.app import app
from lamina.commands.scan import prepare, scan
from lamina.config.composition import problems
from lamina.config.quoting import quoted
from lamina.depth.plan import protection_of, usable_source
from lamina.depth.statistics import Statistics
from lamina.depth.surgery import layer_count
from lamina.depth.variants import Dropped
from lamina.errors import ConfigError
from lamina.measure.results import read_result
from lamina.runtime.console import console

HELP = """\
usage: lamina shortlist [GROUP=OPTION ...] [KEY=VALUE ...]

Scan a model, then heal it without each of the cheapest layers in turn, as a sweep, and print the
losses of both side by side.

usual calls:
  lamina shortlist experiment=quickstart                         the embedded model
  lamina shortlist model_name=PATH data=jsonl data.train=FILE max_steps=200
  lamina shortlist ... scan.candidates=8                         more layers
  lamina shortlist ... depth.protect=[0,1,35]                    never these
  lamina shortlist ... hydra/launcher=slurm                      each layer in a SLURM job

keys, all described in docs/parameters.md:
  choice   scan.candidates, depth.protect, scan.tokens, scan.sets, scan.rows
  others   all those of python -m train --help, except model and selector
"""


@app("config")
def main(config: DictConfig) -> None:
    """Scan, choose, heal, compare."""
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    places = [
        f"--config-dir={each.path}"
        for each in job.runtime.config_sources
        if each.provider == "command-line"
    ]
    kept = [o for o in job.overrides.task if not o.startswith(("model=", "model.", "selector"))]
    launch = [o for o in job.overrides.hydra if not o.startswith(("hydra.run.", "hydra.mode"))]
    given = [*places, *kept, *launch, "model=dropped"]
    _refuse_unfit(given)
    config.model = {"_target_": f"{Dropped.__module__}.{Dropped.__name__}", "layer_to_drop": "auto"}
    run = prepare(config, folder)
    source = usable_source(run.model_name)
    settings = OmegaConf.to_container(config.depth, resolve=True)
    protected = protection_of(source, settings["protect"])
    free = set(range(layer_count(source.config))) - protected.layers
    if not free:
        raise ConfigError(f"{protected.given} protects every layer: protect fewer")
    scores = scan(run, folder)
    cheapest_first = sorted(free, key=scores.leave_one_out.loss.__getitem__)
    layers = cheapest_first[: config.scan.candidates]
    heal_without_each(layers, given, folder / "healing")
    print_losses(scores, layers, folder / "healing")


def _refuse_unfit(given: Sequence[str]) -> None:
    """Raise ConfigError if the healing sweep would not compose, before a scan that takes hours."""
    job = HydraConfig.instance().cfg
    found = problems([*given, "model.layer_to_drop=auto"], "config")
    HydraConfig.instance().cfg = job
    if found:
        raise ConfigError("\n".join(found))


def heal_without_each(layers: Sequence[int], given: Sequence[str], folder: Path) -> None:
    """Run a sweep that drops one of the 0-based layers in each job; `given` are its arguments.

    It runs in a separate process, since Hydra runs one app at a time.
    """
    dropped = f"model.layer_to_drop={','.join(map(str, layers))}"
    command = [sys.executable, "-m", "train", "--multirun", *given, dropped]
    command.append(quoted(f"hydra.sweep.dir={folder}"))
    env = {**os.environ, "HYDRA_FULL_ERROR": "0"}  # it is 1 here: see `app`
    if subprocess.run(command, env=env, check=False).returncode:
        raise ConfigError(f"the healing sweep in {folder} failed; see above")


def print_losses(scores: Statistics, layers: Sequence[int], folder: Path) -> None:
    """Print the losses of the scan and of the healing runs side by side."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title="scan, then healing", title_justify="left")
    table.add_column("layer dropped", style="bold")
    for name in ("scan: loss", "evaluation: reduced", "healed"):
        table.add_column(name, justify="right")
    for number, layer in enumerate(layers):
        result = read_result(folder / str(number))
        metrics = result["metrics"] if result else {}
        losses = [metrics.get(key) for key in ("reduced_eval_loss", "eval_loss")]
        cells = ["" if loss is None else f"{loss:.4g}" for loss in losses]
        table.add_row(str(layer), f"{scores.leave_one_out.loss[layer]:.4g}", *cells)
    console().print(table)
