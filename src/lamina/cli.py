"""`lamina COMMAND ...`: finds the command and hands over; imports nothing heavy."""

import sys
from importlib import import_module

from lamina import __version__

COMMANDS = {
    "train": "compose and run one experiment or a sweep; the same as python -m train",
    "scan": "score every layer of a model in one sweep over its weights",
    "shortlist": "scan, then heal without each of the few layers that cost least",
    "cut": "write a model without some of its layers, unhealed",
    "export": "write a run's result in another form: a whole model, or its adapter",
    "migrate": "turn a config of the older form into an experiment file",
    "show": "print the layers of a model or a run, or the table of a sweep",
}
"""Each command's name and what it is for; its module stands in lamina.commands."""


def main() -> None:
    """Run the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        sys.argv[:2] = [f"lamina {name}"]
        import_module(f"lamina.commands.{name}").main()
    elif name in ("-h", "--help"):
        listed = "\n".join(f"  {command:10} {about}" for command, about in COMMANDS.items())
        sys.stdout.write(f"usage: lamina COMMAND ...\n\n{listed}\n")
    elif name == "--version":
        sys.stdout.write(f"lamina {__version__}\n")
    else:
        sys.stderr.write(f"error: lamina {name}: no such command; there is {', '.join(COMMANDS)}\n")
        sys.exit(2)
