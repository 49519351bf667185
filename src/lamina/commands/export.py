"""`lamina export RUN --output DIR`: a run's result in another form."""

import argparse
import sys

from lamina.commands.app import said_in_one_line
from lamina.runtime.paths import load_environment

FORMS, DTYPES = ("merged", "adapter"), ("bfloat16", "float16", "float32")


def main() -> None:
    """Run the command."""
    asked = _parser().parse_args()
    load_environment()
    with said_in_one_line():
        # Behind the parser: what follows imports torch.
        from lamina.export.convert import export

        written = export(asked.run, asked.output, asked.form, asked.dtype)
    sys.stdout.write(f"{written.output}: {written.form}, {written.dtype or 'as stored'}\n")
    if written.loss:
        found = written.loss
        said = f"checked: loss {found.written:.6g}, the run recorded {found.recorded:.6g}"
        if found.unquantized is not None:
            said += f" on a base in 4 bits; on the unquantized one it is {found.unquantized:.6g}"
        sys.stdout.write(f"{said}\n")
    else:
        sys.stdout.write("checked: every tensor has its place; there are no rows to evaluate\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lamina export", description="Write a run's result in another form, and check it."
    )
    parser.add_argument("run", metavar="RUN", help="run folder, or a model folder of ours")
    parser.add_argument("--output", required=True, metavar="DIR", help="new or empty folder")
    parser.add_argument(
        "--form",
        choices=FORMS,
        default="merged",
        help="merged: a whole model (default); adapter: what PEFT loads onto the untouched base",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="of a merged model's weights; default: as the run measured"
    )
    return parser
