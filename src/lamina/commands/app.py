"""How a command begins and how its errors reach the console."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from lamina.errors import Ended, LaminaError
from lamina.runtime.files import unwritable, write_failure

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def run_app(
    app: Callable[[], object], config_name: str, closing: Callable[[], str | None] = lambda: None
) -> None:
    """Run a Hydra app; errors addressed to the user come without a traceback.

    Args:
        app: What `hydra.main` returned.
        config_name: Its primary config, for errors of composition.
        closing: Called at the end, also after an error; returns what went wrong in a sweep, whose
            jobs have said their own errors.
    """
    from lamina.config import security
    from lamina.config.composition import explain
    from lamina.config.messages import COMPOSITION_ERRORS
    from lamina.config.schema import register
    from lamina.runtime.paths import load_environment

    register()
    load_environment()
    security.install()
    if found := list(security.argument_problems(sys.argv[1:])):
        fail("\n".join(found))
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        app()
        closing()
        return
    # Hydra prints composition errors its own way unless it is told to raise them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    with said_in_one_line():
        try:
            app()
        except COMPOSITION_ERRORS as error:
            fail(explain(error, sys.argv[1:], config_name))
        except KeyboardInterrupt:
            if wrong := closing():
                fail(f"interrupted; {wrong}", INTERRUPTED)
            raise
        except Exception as error:
            if said := _unwritable(error):
                fail(said)
            if wrong := closing():
                fail(wrong)
            raise
        if wrong := closing():
            fail(wrong)


def _unwritable(error: Exception) -> str | None:
    """Say what Hydra could not write: it makes the folder before a command sees the config."""
    if not isinstance(error, OSError) or (said := write_failure(error)) is None:
        return None
    key = f"hydra.{'sweep' if {'-m', '--multirun'} & {*sys.argv} else 'run'}.dir"
    given = [value for name, _, value in (each.partition("=") for each in sys.argv) if name == key]
    # A file that is full when it is closed does not say its name.
    path = error.filename if isinstance(error.filename, str) else (given or ["."])[-1]
    return unwritable(Path(path), said, key)


@contextmanager
def said_in_one_line() -> Iterator[None]:
    """End the process with the message of an error that a person can act on."""
    # On a full disk each line for the log file would end in a traceback on the console.
    logging.raiseExceptions = False
    try:
        yield
    except (LaminaError, Ended) as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted; start the same command in the same folder to go on", INTERRUPTED)


def fail(message: str, code: int = 1) -> NoReturn:
    """Print an error and end the process."""
    sys.stderr.write(f"error: {message}\n")
    sys.exit(code)
