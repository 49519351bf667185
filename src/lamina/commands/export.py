"""`lamina export RUN --output DIR`: write a run's model in another form."""

import argparse
import sys

from lamina.commands.app import errors_in_one_line
from lamina.runtime.paths import load_environment

FORMS, DTYPES = ("merged", "adapter"), ("bfloat16", "float16", "float32")


def main() -> None:
    """Run the command."""
    given = _parser().parse_args()
    load_environment()
    with errors_in_one_line():
        # Imports torch, which the parser's errors need not wait for.
        from lamina.export.convert import export

        written = export(given.run, given.output, given.form, given.dtype)
    sys.stdout.write(f"{written.output}: {written.form}, {written.dtype or 'as stored'}\n")
    if written.loss:
        loss = written.loss
        line = f"checked: loss {loss.written:.6g}, the run recorded {loss.recorded:.6g}"
        if loss.unquantized is not None:
            line += f" on its 4-bit base; {loss.unquantized:.6g} on the unquantized base"
        sys.stdout.write(f"{line}\n")
    else:
        sys.stdout.write("checked: every tensor is in place; there are no rows to evaluate\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lamina export", description="Write a run's model in another form, and check it."
    )
    parser.add_argument(
        "run", metavar="RUN", help="run folder, or a model folder that Lamina wrote"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="new or empty folder")
    parser.add_argument(
        "--form",
        choices=FORMS,
        default="merged",
        help="merged: a whole model (default); adapter: for PEFT to load onto the untouched base",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="of a merged model's weights; default: the run's own"
    )
    return parser
