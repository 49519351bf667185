"""The signals that interrupt a command: Ctrl-C, SIGTERM and SIGHUP."""

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

INTERRUPTING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

FORWARDED = signal.SIGUSR1
"""The signal sent to the processes of a run; its default ends one that is still starting."""

_raised: list[int] = []
"""The signals for which KeyboardInterrupt was raised."""


def interrupt(signum: int, _: Any) -> NoReturn:
    """Handle a signal: end the command, which can clean up."""
    _raised.append(signum)
    raise KeyboardInterrupt("interrupted")


def raise_lost() -> None:
    """Interrupt again if something swallowed it: a finalizer, a library's bare except."""
    if _raised:
        raise KeyboardInterrupt("interrupted")


def exit_code() -> int:
    """Return the exit code after an interruption, as in shells."""
    return 128 + next(iter(_raised), signal.SIGINT)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let the signals interrupt the body, but for those that are ignored or handled.

    A swallowed interruption is raised at the body's end, also in place of an error: what was half
    done may have failed.
    """
    with handling(dict.fromkeys(_free(), interrupt)) as before:
        if before:
            _raised.clear()
            sys.unraisablehook = _print_unless_interrupted
        try:
            yield
            raise_lost()
        except Exception:
            raise_lost()
            raise


@contextmanager
def handling(handlers: Mapping[Any, Any]) -> Iterator[dict[int, Any]]:
    """Handle signals in the body, and restore their handlers; yield these."""
    before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    try:
        yield before
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _print_unless_interrupted(lost: "sys.UnraisableHookArgs") -> None:
    if not issubclass(lost.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(lost)


def leave_at_signals() -> None:
    """End the process at a signal, with one line; `interruptible` changes that."""
    for signum in _free():
        signal.signal(signum, _leave)


def _leave(signum: int, _: Any) -> NoReturn:
    # Raised while a module is imported, KeyboardInterrupt may be lost, or end in a traceback.
    with suppress(OSError):
        os.write(2, b"error: interrupted\n")
    os._exit(128 + signum)


def _free() -> list[signal.Signals]:
    """Return the signals that nothing else handles or ignores."""
    free = (signal.SIG_DFL, signal.default_int_handler, _leave)
    return [signum for signum in INTERRUPTING if signal.getsignal(signum) in free]
