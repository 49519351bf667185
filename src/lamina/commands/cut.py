"""`lamina cut`: write a reduced model without healing it."""

import sys
from pathlib import Path

from omegaconf import DictConfig

from lamina.commands.app import app
from lamina.config.binding import bind
from lamina.config.preflight import refuse_incomplete
from lamina.depth.layer_sets import format_layers
from lamina.runtime.console import printable

HELP = """\
usage: lamina cut model_name=MODEL output=DIR [GROUP=OPTION ...] [KEY=VALUE ...]

Write a model without some of its layers, unhealed. The kept weights keep their bytes and types.

usual calls:
  lamina cut model_name=PATH output=DIR model=dropped model.layer_to_drop=16
  lamina cut model_name=PATH output=DIR model=pruned model.keep_layers=24 selector=uniform
  lamina cut model_name=PATH output=DIR model=pruned model.target_bytes=12GB
  lamina cut model_name=PATH output=DIR model=layers 'model.keep=[0-12,20-36]'
  lamina cut model_name=PATH output=DIR model=layers 'model.drop=[16,17]'

keys, all described in docs/parameters.md:
  model    model_name, depth.protect
  layers   model=dropped    model.layer_to_drop
           model=pruned     model.keep_layers, selector=first|last|uniform|random
                            model.target_parameters, model.target_bytes
           model=layers     model.keep, model.drop
  files    output
"""


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
    sys.stdout.writelines(printable(f"{note}\n") for note in plan.notes())
