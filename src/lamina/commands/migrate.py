"""`lamina migrate OLD.yaml`: turn a config of the older form into an experiment file."""

import argparse
import shlex
import sys
from pathlib import Path

from lamina.commands.app import errors_in_one_line, parse
from lamina.config.library_fields import counterpart
from lamina.errors import OutputError
from lamina.legacy import experiment_file
from lamina.legacy.form import resolve
from lamina.runtime.console import printable
from lamina.runtime.paths import conf_dir

GROUP = "experiment"

CALLS = """\
usual calls:
  lamina migrate OLD.yaml                       writes migrated/experiment/OLD.yaml
  lamina migrate OLD.yaml --output conf         writes conf/experiment/OLD.yaml
  lamina migrate OLD.yaml --force               leaves out unknown keys, and lists them
  python -m train --old OLD.yaml                runs it as it is
  python -m train --old OLD.yaml --cfg job      shows what it means today
"""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="lamina migrate",
        description="Turn a config of the older form and the files it extends into an experiment "
        "file, and print the command that runs it.",
        epilog=CALLS,
    )
    parser.add_argument("old", metavar="OLD.yaml", type=Path, help="config of the older form")
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        default=Path("migrated"),
        help="folder of configs; the file goes to DIR/experiment (default: migrated)",
    )
    parser.add_argument(
        "--force", action="store_true", help="leave out unknown keys, and list them"
    )
    given = parse(parser)
    with errors_in_one_line():
        older = resolve(given.old, drop_unknown=given.force, today=counterpart)
        name = experiment_file.experiment_name(given.old)
        written = write_experiment(experiment_file.experiment(older), given.output, name)
    if experiment_file.keeps_older_rate(older):
        sys.stdout.write(f"{experiment_file.KEPT_RATE}\n")
    for message in older.dropped:
        sys.stdout.write(printable(f"left out: {message}\n"))
    files = " < ".join(str(read.path) for read in older.files)
    sys.stdout.write(printable(f"{written}: from {files}\n"))
    sys.stdout.write(f"{train_command(written)}\n")


def write_experiment(text: str, output: Path, name: str, setting: str = "--output") -> Path:
    """Write a new experiment file to a folder of configs, or to `experiment` in one.

    `setting` is the argument to change if the file exists.
    """
    folder = output if output.name == GROUP else output / GROUP
    path = folder / f"{name}.yaml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise OutputError(f"{error.filename} already exists: use another {setting}") from error
    except OSError as error:
        raise OutputError(f"--output={output}: {error.strerror}: {error.filename}") from error
    return path


def train_command(written: Path) -> str:
    """Return the command that runs an experiment file."""
    configs = written.parent.parent
    is_shipped = configs.resolve() == conf_dir().resolve()
    config_dir = "" if is_shipped else f"--config-dir {shlex.quote(str(configs))} "
    return f"python -m train {config_dir}experiment={written.stem}"
