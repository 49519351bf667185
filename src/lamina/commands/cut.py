"""`lamina cut`: write a reduced model without healing it."""

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig

from lamina.commands.app import run_app
from lamina.config.preflight import resolved
from lamina.depth.layer_sets import shown
from lamina.depth.plan import Plan
from lamina.errors import Ended, LaminaError
from lamina.runtime.paths import conf_dir


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="cut")
def cut(config: DictConfig) -> None:
    """Write one reduced model."""
    job = HydraConfig.get()
    try:
        resolved(config)
        plan = instantiate(config).execute()
    except LaminaError as error:
        if job.mode == RunMode.RUN:
            raise Ended(str(error)) from error
        sys.stderr.write(f"error in job {job.job.num}: {error}\n")
        raise
    show(plan, Path(config.output))


def show(plan: Plan, output: Path) -> None:
    """Say what stayed and where it is."""
    weights = sum(path.stat().st_size for path in output.expanduser().glob("*.safetensors"))
    sys.stdout.write(
        f"{output}: {len(plan.kept_layers)} of {plan.num_layers} layers, {shown(plan.kept_layers)} "
        f"(0-based, half-open), {weights:,} bytes\n"
    )


def main() -> None:
    """Run the command."""
    run_app(cut, "cut")
