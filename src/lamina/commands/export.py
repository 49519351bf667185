"""`lamina export RUN --output DIR`: write a run's model in another form."""

import argparse
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.commands.app import errors_in_one_line, parse
from lamina.errors import ConfigError
from lamina.measure.engines import QUANTIZED
from lamina.runtime.paths import load_environment

if TYPE_CHECKING:
    from lamina.export.check import Losses

FORMS, DTYPES = ("merged", "adapter", "gguf"), ("bfloat16", "float16", "float32")

CALLS = """\
usual calls:
  lamina export RUN --output DIR                             a full model, in the run's dtype
  lamina export RUN --output DIR --dtype bfloat16            half the size of float32
  lamina export SWEEP --best --output DIR                    of the job with the lowest loss
  lamina export RUN --output DIR --form gguf --quantize q4_k_m
  lamina export RUN --output DIR --base PATH                 the base model has moved
"""


def main() -> None:
    """Run the command."""
    given = _parsed()
    with errors_in_one_line():
        load_environment()
        from lamina.export.convert import export  # imports torch, which takes seconds

        run = _job_of(Path(given.run).expanduser(), best=given.best) or given.run
        options = {key: getattr(given, key) for key in ("dtype", "quantize", "base", "python")}
        dtype, loss = export(run, given.output, given.form, **options)
    sys.stdout.write(f"{Path(given.output)}: {given.form}, {dtype or 'as stored'}\n")
    sys.stdout.writelines(f"{line}\n" for line in _next_steps(given, run, loss))


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="lamina export",
        description="Write a run's model in another form, and check it. Nothing is uploaded.",
        epilog=CALLS,
    )
    parser.add_argument(
        "run", metavar="RUN", help="folder of a run or sweep, or of a model that Lamina wrote"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="new or empty folder")
    parser.add_argument("--best", action="store_true", help="of a sweep: the job of lowest loss")
    parser.add_argument(
        "--form",
        choices=FORMS,
        default="merged",
        help="merged: a full model (default), for transformers and vLLM; adapter: PEFT loads it "
        "onto the untouched base; gguf: one file for llama.cpp",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="dtype of a full model or GGUF (default: the run's)"
    )
    parser.add_argument("--quantize", choices=QUANTIZED, help="of a GGUF: fewer bits")
    parser.add_argument("--base", metavar="PATH", help="the base model, if it has moved")
    parser.add_argument("--python", metavar="PATH", help="interpreter with llama.cpp's packages")
    return parse(parser)


def _next_steps(given: argparse.Namespace, run: str, loss: "Losses | None") -> Iterator[str]:
    """Yield what was checked, and how to load, verify and upload the export."""
    from lamina.export.card import serving

    output = Path(given.output)
    if loss:
        line = f"checked: loss {loss.written:.6g}, the run recorded {loss.recorded:.6g}"
        if loss.unquantized is not None:
            line += f" on its 4-bit base; {loss.unquantized:.6g} on the unquantized base"
        yield f"{line}; {loss.rows} of {loss.all_rows} rows, {loss.allowed:.2g} allowed"
    else:
        yield "checked: every tensor is in place; there are no rows to evaluate"
    path = next(map(str, output.expanduser().glob("*.gguf")), str(output))
    yield f"loads in: {serving(given.form, path, given.base or 'BASE')}"
    if loss:
        engine = "llama.cpp" if given.form == "gguf" else "transformers"
        command = ["lamina", "verify", str(output), "--engine", engine, "--run", run]
        yield f"verify: {shlex.join(command)}"
    yield f"upload: hf upload YOUR_NAME/MODEL {shlex.quote(str(output))}"


def _job_of(folder: Path, *, best: bool) -> str | None:
    """Return the folder of a sweep's best job; None if it is no sweep."""
    from lamina.measure.results import MULTIRUN_FILE
    from lamina.report.reading import read_report

    if not (folder / MULTIRUN_FILE).is_file():
        if best:
            raise ConfigError(f"--best: {folder} is no sweep")
        return None
    rows = [row for row in read_report([folder]).ranked if row.is_complete]
    if not rows:
        raise ConfigError(f"{folder}: no job of the sweep has completed")
    problem = "is a sweep: pass --best, or one of its jobs"
    if best:
        if len({row.eval_fingerprint for row in rows}) == 1:
            return str(folder / rows[0].job)
        problem = "has losses on different rows, which --best cannot compare: pass one of its jobs"
    named = "; ".join(f"{folder / row.job} ({row.name}, {_loss(row.healed_loss)})" for row in rows)
    raise ConfigError(f"{folder} {problem}: {named}")


def _loss(value: float | None) -> str:
    return "no loss" if value is None else f"loss {value:.4g}"
