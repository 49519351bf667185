"""`lamina verify MODEL --engine ENGINE`: a model's loss in the program that will serve it."""

import argparse
import sys

from lamina.commands.app import errors_in_one_line, parse
from lamina.measure.engines import ENGINES
from lamina.runtime.paths import load_environment

CALLS = """\
usual calls:
  lamina verify RUN --engine transformers                    a run's final/
  lamina verify DIR --engine transformers                    a folder that lamina export wrote
  lamina verify DIR --engine vllm --python PATH              vLLM has an environment of its own
  lamina verify DIR --engine llama.cpp                       a GGUF
  lamina verify DIR --engine vllm --run RUN                  the run has moved
"""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="lamina verify",
        description="Load a model in an engine, in a separate process, and compare its loss on the "
        "rows of eval.jsonl with the recorded one. Writes verification.json, and a line on the "
        "card; ends with 1 if the difference is more than the type of the weights explains.",
        epilog=CALLS,
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a run, its final/, or a folder that lamina export wrote"
    )
    parser.add_argument("--engine", choices=ENGINES, required=True, help="what loads the model")
    parser.add_argument("--python", metavar="PATH", help="interpreter that has the engine")
    parser.add_argument("--run", metavar="RUN", help="the run that an export came from")
    given = parse(parser)
    load_environment()
    with errors_in_one_line():
        from lamina.export.verify import verify

        line = verify(given.model, given.engine, given.python, given.run)
    sys.stdout.write(f"{line}\n")
