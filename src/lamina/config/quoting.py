"""Reads command-line arguments, and says how to type them.

A shell takes one level of quotes, Hydra's grammar the next: 'data.train="a (1).jsonl"'.
"""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from lamina.runtime.paths import short_path

NO_PAIR = "not of the form NAME=VALUE"


def read(arguments: Sequence[str], parser: OverridesParser) -> Iterator[Override | str]:
    """Yield each argument as an override, or as the problem of one that Hydra cannot read.

    What the shell has split at spaces is one problem. A value that needs quotes follows its problem
    as the text that it would be.
    """
    rest = list(arguments)
    while rest:
        first = rest.pop(0)
        given = _parsed(first, parser)
        words = list(takewhile(lambda word: "=" not in word and not _parsed(word, parser), rest))
        del rest[: len(words)]
        whole = " ".join([first, *words])
        if given is not None:
            yield given
            if words:
                text = f"; if it belongs to the value before it, quote both: {as_text(whole)}"
                yield f"{words[0]}: {NO_PAIR}{text if '=' in whole else ''}"
        elif words and (given := _parsed(whole, parser)):
            yield f"{whole}: one argument with spaces: quote it: {for_shell(whole)}"
            yield given
        elif "=" in whole and (given := _parsed(quoted(whole), parser)):
            yield f"{whole}: {NO_PAIR}; quote its value: {as_text(whole)}"
            yield given
        else:
            yield f"{whole}: {NO_PAIR}"


def as_text(argument: str) -> str:
    """Return NAME=VALUE as a shell takes it, such that Hydra reads the value as text."""
    return for_shell(quoted(argument))


def typed(argument: str) -> str:
    """Return NAME=VALUE as it is typed in a shell, in quotes only if they are needed."""
    given = _parsed(argument, OverridesParser.create())
    is_plain = given is not None and given.value() == argument.partition("=")[2]
    return argument if is_plain and shlex.quote(argument) == argument else as_text(argument)


def again(key: str, folder: Path) -> str:
    """Return the command that started this process, for a shell, with its run's folder.

    `key` is the config key that sets the folder.
    """
    words = sys.orig_argv
    if "TORCHELASTIC_RUN_ID" in os.environ:  # a user's own torchrun
        import psutil

        words = psutil.Process(os.getppid()).cmdline()
    script = Path(words[1]).name
    if shutil.which(script) == words[1]:
        words = [script, *words[2:]]
    kept = (word for word in words if not word.startswith(f"{key}="))
    return f"{shlex.join(kept)} {typed(f'{key}={short_path(folder)}')}"


def quoted(argument: str) -> str:
    """Return NAME=VALUE such that Hydra reads the value as text."""
    name, _, value = argument.partition("=")
    # In quotes, a backslash means itself unless a quote follows.
    escaped = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + '\\"' * bool(found[2]), value)
    return f'{name}="{escaped}"'


def for_shell(argument: str) -> str:
    """Quote an argument for a shell."""
    if "'" not in argument:
        return f"'{argument}'"
    if re.search("[!$`]", argument):  # bash expands them in double quotes
        return shlex.quote(argument)
    return '"' + re.sub(r'([\\"])', r"\\\1", argument) + '"'


def _parsed(argument: str, parser: OverridesParser) -> Override | None:
    try:
        return parser.parse_overrides([argument])[0]
    except (HydraException, ValueError):  # int() refuses thousands of digits
        return None
