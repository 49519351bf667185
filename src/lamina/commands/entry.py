"""How a command begins and how its errors reach the console."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from lamina.errors import LaminaError


class Ended(BaseException):
    """Carries a single job's error past Hydra, which would print a line of its own about it."""


def run_app(app: Callable[[], object], config_name: str) -> None:
    """Run a Hydra app; errors addressed to the user come without a traceback.

    Args:
        app: What `hydra.main` returned.
        config_name: Its primary config, for errors of composition.
    """
    from lamina.config import guard
    from lamina.config.composition import explain
    from lamina.config.paths import load_environment
    from lamina.config.schema import register
    from lamina.config.wording import COMPOSITION_ERRORS

    register()
    load_environment()
    guard.install()
    if found := list(guard.argument_problems(sys.argv[1:])):
        fail("\n".join(found))
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        app()
        return
    # Hydra prints composition errors its own way unless it is told to raise them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    with said_in_one_line():
        try:
            app()
        except COMPOSITION_ERRORS as error:
            fail(explain(error, sys.argv[1:], config_name))


@contextmanager
def said_in_one_line() -> Iterator[None]:
    """End the process with the message of an error that a person can act on."""
    try:
        yield
    except (LaminaError, Ended) as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted; start the same command in the same folder to go on")


def fail(message: str) -> NoReturn:
    """Print an error and end the process."""
    sys.stderr.write(f"error: {message}\n")
    sys.exit(1)
