"""The console: streams that never fail, and no control characters from files."""

import io
import logging
import os
import re
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from lamina.runtime.interruption import leave_at_signals

if TYPE_CHECKING:
    from rich.console import Console

CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    r"\ud800-\udfff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
"""Characters that steer a terminal, reorder a line or cannot be seen; not tabs and line ends."""


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
            line = stream.line_buffering
            made = Unfailing(stream.buffer, stream.encoding, "backslashreplace", None, line)
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
    """Return rich's console for tables and reports, without control characters from their cells."""
    from rich.console import Console
    from rich.segment import Segment

    class PrintableConsole(Console):
        @override
        def render(self, *arguments: Any, **options: Any) -> Any:
            for text, style, control in super().render(*arguments, **options):
                yield Segment(text if control else printable(text), style, control)

    return PrintableConsole(**settings)


def quiet_libraries() -> None:
    """Silence the libraries' notices; errors are still raised."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    # It warns that weights are offloaded to disk, which a scan does on purpose.
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
    # PEFT imports bitsandbytes, which recommends a package on machines without a GPU.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
