"""`lamina export RUN --output DIR`: write a run's model in another form."""

import argparse
import sys
from pathlib import Path

from lamina.commands.app import errors_in_one_line, parse
from lamina.runtime.paths import load_environment

FORMS, DTYPES = ("merged", "adapter"), ("bfloat16", "float16", "float32")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="lamina export", description="Write a run's model in another form, and check it."
    )
    parser.add_argument(
        "run", metavar="RUN", help="folder of a run, or of a model that Lamina wrote"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="new or empty folder")
    parser.add_argument(
        "--form",
        choices=FORMS,
        default="merged",
        help="merged: a full model (default); adapter: PEFT loads it onto the untouched base",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="dtype of a merged model (default: the run's)"
    )
    given = parse(parser)
    load_environment()
    with errors_in_one_line():
        from lamina.export.convert import export  # imports torch, which takes seconds

        dtype, loss = export(given.run, given.output, given.form, given.dtype)
    sys.stdout.write(f"{Path(given.output)}: {given.form}, {dtype or 'as stored'}\n")
    if loss:
        line = f"checked: loss {loss.written:.6g}, the run recorded {loss.recorded:.6g}"
        if loss.unquantized is not None:
            line += f" on its 4-bit base; {loss.unquantized:.6g} on the unquantized base"
        sys.stdout.write(f"{line}\n")
    else:
        sys.stdout.write("checked: every tensor is in place; there are no rows to evaluate\n")
