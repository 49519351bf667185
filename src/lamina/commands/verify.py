"""`lamina verify MODEL --engine ENGINE`: a model's loss in the program that will serve it."""

import argparse
import sys

from lamina.commands.app import errors_in_one_line, parse
from lamina.measure.engines import ENGINES
from lamina.runtime.paths import load_environment

CALLS = """\
usual calls:
  lamina verify RUN --engine transformers                    a run's final/
  lamina verify RUN --engine vllm --python PATH              vLLM in an environment of its own
  lamina verify DIR --engine transformers --run RUN          a folder that lamina export wrote
  lamina verify DIR --engine vllm --run RUN --python PATH
  lamina verify DIR --engine llama.cpp --run RUN             a GGUF
"""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="lamina verify",
        description="Load a model in an engine, in a separate process, and compare its loss on the "
        "rows of eval.jsonl with the recorded one. Writes verification.json, and a line on the "
        "card; the exit code is 1 if the difference exceeds what the type of the weights explains.",
        epilog=CALLS,
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a run, its final/, or a folder that lamina export wrote"
    )
    parser.add_argument("--engine", choices=ENGINES, required=True, help="what loads the model")
    parser.add_argument("--python", metavar="PATH", help="interpreter that has the engine")
    parser.add_argument("--run", metavar="RUN", help="the run that an export came from")
    given = parse(parser)
    with errors_in_one_line():
        load_environment()
        from lamina.export.verify import verify

        line = verify(given.model, given.engine, given.python, given.run)
    sys.stdout.write(f"{line}\n")
