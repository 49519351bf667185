"""`lamina COMMAND ...`: imports and runs one command."""

import os
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from lamina import __version__
from lamina.runtime.console import prepare_console

COMMANDS = {
    "train": "run one experiment or a sweep; same as python -m train",
    "scan": "score every layer of a model in one pass over its weights",
    "shortlist": "scan, then heal without each of the cheapest layers in turn",
    "evaluate": "run a model or a run's result through tasks, and measure its speed",
    "cut": "write a model without some of its layers, unhealed",
    "export": "write a run's model in another form: merged, adapter or GGUF",
    "verify": "compare a model's loss in transformers, vLLM or llama.cpp with the recorded one",
    "migrate": "turn a config of the older form into an experiment file",
    "show": "print a model, a run, a sweep or a scan",
    "report": "compare runs and sweeps from their files: a page, tables and a picture",
    "init": "write an experiment file of your own",
    "clean": "remove the checkpoints that are no longer needed",
}
"""What each command does; lamina.commands has a module of the same name."""


def main() -> None:
    """Run the command named by the first argument."""
    prepare_console()
    with suppress(FileNotFoundError):  # a removed working folder
        if not {"", str(Path.cwd())} & {*sys.path}:
            # Interpreters started with -m must not import from the working folder, either.
            os.environ["PYTHONSAFEPATH"] = "1"
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        sys.argv[:2] = [f"lamina {name}"]
        import_module(f"lamina.commands.{name}").main()
    elif name in ("-h", "--help"):
        lines = "\n".join(f"  {command:10} {purpose}" for command, purpose in COMMANDS.items())
        sys.stdout.write(f"usage: lamina COMMAND ...\n\n{lines}\n")
    elif name == "--version":
        sys.stdout.write(f"lamina {__version__}\n")
    else:
        sys.stderr.write(f"error: lamina {name}: no such command; use {', '.join(COMMANDS)}\n")
        sys.exit(2)
