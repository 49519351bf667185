"""`lamina cut`: write a reduced model without healing it."""

import sys
from pathlib import Path

from omegaconf import DictConfig

from lamina.commands.app import app
from lamina.config.binding import bind
from lamina.config.preflight import refuse_incomplete
from lamina.depth.layer_sets import format_layers


@app("cut")
def main(config: DictConfig) -> None:
    """Write a reduced model, and print its layers and size."""
    refuse_incomplete(config)
    plan = bind(config).execute()
    output = Path(config.output)
    weights = sum(path.stat().st_size for path in output.expanduser().glob("*.safetensors"))
    sys.stdout.write(
        f"{output}: {len(plan.kept_layers)} of {plan.num_layers} layers, "
        f"{format_layers(plan.kept_layers)} (0-based, half-open), {weights:,} bytes\n"
    )
    sys.stdout.writelines(f"{note}\n" for note in plan.notes())
