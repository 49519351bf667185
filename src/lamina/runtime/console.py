"""The console: streams that never fail, no control characters from files, and work in progress.

A terminal shows work in a bar, a file or pipe in a line now and then.
"""

import io
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from lamina.runtime import distributed
from lamina.runtime.interruption import leave_at_signals
from lamina.units import format_duration

if TYPE_CHECKING:
    from rich.console import Console

CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    r"\ud800-\udfff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
"""Characters that steer a terminal, reorder a line or cannot be seen; not tabs and line ends."""

REFRESH_S = 0.5
"""Seconds between two states of the bar."""

LATE_S, LINE_S = 2.0, 30.0
"""Without a terminal: seconds until work is named for the first time, and between its lines."""

BAR_WIDTH = 10

CLEAR = "\r\x1b[K"
"""Erases a terminal's line."""

logger = logging.getLogger(__name__)


class Unfailing(io.TextIOWrapper):
    """A stream that loses what it cannot write: the disk is full, or the reader is gone."""

    @override
    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            super().write(text)
        return len(text)

    @override
    def flush(self) -> None:
        with suppress(OSError, ValueError):
            super().flush()


def prepare_console() -> None:
    """Let no write to the console fail; at a signal, end with one line and no traceback."""
    guard_streams()
    leave_at_signals()


def guard_streams() -> None:
    """Let no write to the console fail."""
    # Otherwise a file gets the number of a closed stream, and a library prints into it.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is getattr(sys, f"__{name}__"):  # else another program's own
            stream = getattr(sys, name) or os.fdopen(number, "w")
            flushed = stream.line_buffering, stream.write_through
            made = Unfailing(stream.buffer, stream.encoding, "backslashreplace", None, *flushed)
            setattr(sys, name, made)


def printable(text: str) -> str:
    r"""Return text with its control characters written out, as in \x1b."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class PrintableRecord(logging.LogRecord):
    """A record of a log, without control characters."""

    @override
    def getMessage(self) -> str:
        return printable(super().getMessage())


def console(**settings: Any) -> "Console":
    """Return rich's console for tables and reports: their cells are texts, often someone else's.

    They have no control characters, and no markup or emoji codes.
    """
    from rich.console import Console
    from rich.segment import Segment

    class PrintableConsole(Console):
        @override
        def render(self, *arguments: Any, **options: Any) -> Any:
            for text, style, control in super().render(*arguments, **options):
                yield Segment(text if control else printable(text), style, control)

    return PrintableConsole(markup=False, emoji=False, **settings)


@dataclass(kw_only=True, eq=False)
class Stage:
    """A piece of work that may take seconds, and how far it is."""

    text: str
    total: int | None
    """Units of work, if they can be counted."""
    unit: str
    format: Callable[[int], str]
    first: int
    """Units that were done before."""
    done: int
    notes: Sequence[str] = ()
    """Figures to show whatever the width."""
    extras: Sequence[str] = ()
    """Figures to show if there is room."""
    began: float = field(default_factory=time.monotonic)
    said: bool = False
    """Whether a line has named it."""

    def advance(self, units: int = 1) -> None:
        """Count units of work as done."""
        self.done = self.done + units if self.total is None else min(self.done + units, self.total)

    def line(self, width: int | None = None) -> str:
        """Return its name, its figures and the time left, or so far; cut to a width, with a bar."""
        took, new = time.monotonic() - self.began, self.done - self.first
        parts = [*self.notes]
        if self.total is not None:
            parts.insert(0, f"{self.format(self.done)} of {self.format(self.total)} {self.unit}")
        left = (self.total or 0) - self.done
        known = left > 0 and new
        parts.append(
            f"{format_duration(took / new * left)} left" if known else format_duration(took)
        )
        figures = ", ".join(parts)
        bar, name = "", self.text
        if width is not None:
            if self.total:
                bar = f"[{'#' * (BAR_WIDTH * self.done // self.total):.<{BAR_WIDTH}}] "
            name = name[: max(0, width - len(bar) - len(figures) - 2)]
        return ", ".join((f"{bar}{name}: {figures}", *self.extras))[:width]

    def say(self) -> None:
        """Print its line, which also goes to the log file."""
        self.said, _display.said_at = True, time.monotonic()
        announce(self.line())


class _Display:
    """The stages at work, the outermost first, and what the terminal's last line holds."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self.said_at = 0.0
        self.has_bar = False

    def show(self) -> None:
        """Show the innermost stage."""
        for stage in self.stages[-1:]:
            if sys.stderr.isatty():
                width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
                sys.stderr.write(f"{CLEAR}{printable(stage.line(width - 1))}")
                sys.stderr.flush()
                self.has_bar = True
                continue
            since = time.monotonic() - max(stage.began, self.said_at)
            if since >= (LINE_S if stage.said else LATE_S):
                stage.say()

    def clear(self) -> str:
        """Return what erases the bar, if there is one."""
        had, self.has_bar = self.has_bar, False
        return CLEAR if had else ""


_display = _Display()


def announce(line: str) -> None:
    """Print a line about the work that begins or goes on; it also goes to the log file."""
    if logger.isEnabledFor(logging.INFO):
        logger.info("%s", line)
    else:
        sys.stderr.write(f"{printable(line)}\n")  # a command without a log


@contextmanager
def stage(
    text: str,
    total: int | None = None,
    unit: str = "",
    *,
    first: int = 0,
    format: Callable[[int], str] = "{:,}".format,
) -> Iterator[Stage]:
    """Show the body's work while it lasts: at once on a terminal, after two seconds without one.

    The first process alone shows it. Of stages within stages the innermost one is shown.
    """
    shown = Stage(text=text, total=total, unit=unit, first=first, done=first, format=format)
    is_watched = not _display.stages and distributed.is_first()
    _display.stages.append(shown)
    try:
        with repeating(_display.show, REFRESH_S) if is_watched else nullcontext():
            yield shown
    finally:
        _display.stages.remove(shown)
        if is_watched:
            sys.stderr.write(_display.clear())


@contextmanager
def repeating(action: Callable[[], object], seconds: float) -> Iterator[None]:
    """Call an action again and again, from a thread, while the body lasts."""
    over = threading.Event()

    def _repeat() -> None:
        while not over.wait(seconds):
            action()

    thread = threading.Thread(target=_repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class LineHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes log lines to the console, above the bar."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        return _display.clear() + super().format(record)


def quiet_libraries() -> None:
    """Silence the libraries' notices; errors are still raised."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    quiet_loggers()


def quiet_loggers() -> None:
    """Silence what libraries log when they are imported, and again and again."""
    # One notice for each batch of an evaluation by several processes.
    logging.getLogger("accelerate.accelerator").setLevel(logging.WARNING)
    # It warns that weights are offloaded to disk, which a scan does on purpose.
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
    # PEFT imports bitsandbytes, which recommends packages on machines without a GPU.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
