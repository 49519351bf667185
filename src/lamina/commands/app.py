"""Turns a function into a command: Hydra composes its config, errors are printed in one line."""

import gc
import logging
import os
import re
import sys
import traceback
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, NoReturn

from lamina.errors import Ended, LaminaError
from lamina.runtime import distributed
from lamina.runtime.console import PrintableRecord, printable
from lamina.runtime.files import disk_errors
from lamina.runtime.interruption import exit_code, interruptible

if TYPE_CHECKING:
    from omegaconf import DictConfig

Task = Callable[["DictConfig"], None]
Closing = Callable[[], str | None]

HOME = re.compile(r"(?:^|(?<=[=,\[])|(?<=file://))~(?=[/,\]]|$)")
"""A ~ for the home folder: at the start of an argument, of its value, or of one of several."""


def app(config_name: str, closing: Closing | None = None) -> Callable[[Task], Callable[[], None]]:
    """Decorate a function of a composed config as a Hydra app.

    `closing` is called at the end of a sweep, even after an error, and returns what went wrong in
    its jobs; without it, the first job that fails ends the sweep.
    """
    return lambda task: partial(_run, task, config_name, closing)


def _reporting(task: Task, reported: list[str] | None) -> Task:
    # Hydra names the job after the task's module.
    @wraps(task)
    def _task(config: "DictConfig") -> None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from lamina.config.quoting import again

        try:
            with interruptible(), disk_errors(Path(HydraConfig.get().runtime.output_dir)):
                task(config)
        # Hydra would print any error with its own traceback and hints.
        except Exception as error:
            _report(error, reported)
        except KeyboardInterrupt as error:
            job = HydraConfig.get()
            if job.mode == RunMode.RUN:  # a sweep's closing has its own command
                command = again("hydra.run.dir", Path(job.runtime.output_dir))
                error.args = (f"interrupted; to continue: {command}",)
            raise

    return _task


def _report(error: Exception, reported: list[str] | None) -> None:
    """Report a job's error without the lines that Hydra would add; no list: it ends the sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    job = HydraConfig.get()
    message = str(error)
    if not isinstance(error, LaminaError):
        if job.job_logging is None:
            raise error
        # A warning is below the console's level and only reaches the log file.
        logging.getLogger("command").warning("unexpected error", exc_info=error)
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        log = Path(job.runtime.output_dir) / f"{job.job.name}.log"
        message = f"{reason}; the traceback is in {log}"
    if job.mode == RunMode.RUN:
        raise Ended(message) from error
    if reported is None:
        raise Ended(f"job {job.job.num}: {message}") from error
    reported.append(f"job {job.job.num}: {message}")
    sys.stderr.write(printable(f"error in job {job.job.num}: {message}\n"))
    # Otherwise the traceback's frames hold the failed job's model while the next one is loaded.
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
    gc.collect()


def _run(task: Task, config_name: str, closing: Closing | None) -> None:
    if {"-h", "--help"} & {*sys.argv[1:]}:
        sys.stdout.write(sys.modules[task.__module__].HELP)
        return
    import hydra
    from hydra._internal.utils import get_args_parser

    overrides = parse(get_args_parser()).overrides
    sys.argv[1:] = _flags_first(sys.argv[1:], overrides)
    from lamina.config import security, source_files
    from lamina.config.schema import register
    from lamina.runtime.paths import conf_dir, load_environment

    decorate = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)
    reported: list[str] | None = None if closing is None else []
    main, close = decorate(_reporting(task, reported)), closing or (lambda: None)

    # A job that completed may have failed after that.
    def wrong() -> str | None:
        return close() or "\n".join(reported or ()) or None

    register()
    with errors_in_one_line():
        load_environment()
    security.install(sys.argv[1:])
    source_files.install()
    _compose_and_run(main, wrong, config_name)


def _compose_and_run(main: Callable[[], None], wrong: Closing, config_name: str) -> None:
    """Run a Hydra app; an error in its config, in the task or in a sweep's jobs is printed."""
    from lamina.config.composition import explain
    from lamina.config.messages import COMPOSITION_ERRORS

    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        with interruptible():
            main()
            if problem := wrong():
                fail(problem)
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise composition errors, not print them
    with errors_in_one_line():
        try:
            with interruptible(), disk_errors(Path()):
                main()
        except COMPOSITION_ERRORS as error:
            fail(explain(error, sys.argv[1:], config_name))
        except KeyboardInterrupt:
            if problem := wrong():
                fail(f"interrupted; {problem}", exit_code())
            raise
        # A sweep's report is due whatever ended it.
        except Exception as error:
            if problem := wrong():
                kind = "" if isinstance(error, LaminaError) else f"{type(error).__name__}: "
                fail(f"{kind}{error}\n{problem}")
            raise
        if problem := wrong():
            fail(problem)


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Print an error that the user can act on as one line, and end the process."""
    # On a full disk every line for the log file would print a traceback.
    logging.raiseExceptions = False
    logging.setLogRecordFactory(PrintableRecord)
    try:
        _refuse_lost_folder()
        with interruptible(), disk_errors(Path()):
            yield
    except (LaminaError, Ended) as error:
        fail(str(error))
    except KeyboardInterrupt as error:
        if not distributed.is_first():  # of a user's own torchrun
            sys.exit(exit_code())
        fail(str(error) or "interrupted", exit_code())


def _refuse_lost_folder() -> None:
    try:
        os.fsencode(Path.cwd()).decode()
    except FileNotFoundError:
        fail("the current folder has been removed: change to another")
    except UnicodeDecodeError:
        fail(f"the current folder's name is not UTF-8: change to another than {str(Path.cwd())!a}")


def parse(parser: ArgumentParser) -> Namespace:
    """Parse the command line, after expanding ~ in it; a usage error is one line."""
    name, end = parser.prog, f"see {parser.prog} --help"
    parser.description = fill(parser.description or "", width=98)
    parser.formatter_class = RawDescriptionHelpFormatter  # keeps the lines of usual calls
    parser.error = lambda message: fail(f"{name}: {message}; {end}", 2)  # type: ignore[method-assign]
    sys.argv[1:] = expand_home(sys.argv[1:])
    return parser.parse_intermixed_args()


def expand_home(arguments: Sequence[str]) -> list[str]:
    """Expand ~ where a shell leaves it, as in data.train=~/rows.jsonl, but not within quotes."""
    home = str(Path.home())
    return [a if {*a} & {"'", '"'} else HOME.sub(lambda _: home, a) for a in arguments]


def _flags_first(arguments: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Return a command line with its overrides in one block, as Hydra's own parser needs them."""
    flags, left = [], list(overrides)
    for argument in arguments:
        if left and argument == left[0]:
            left.pop(0)
        else:
            flags.append(argument)
    return [*flags, *overrides]


def fail(message: str, code: int = 1) -> NoReturn:
    """Print an error and end the process."""
    sys.stderr.write(printable(f"error: {message}\n"))
    sys.exit(code)
