"""The errors that a person can act on.

    LaminaError
    |-- ConfigError      what was asked for cannot be done
    |-- ModelError       a model's files are missing, incomplete or of an unknown kind
    |-- DataError        a data set is missing, empty or has a row that cannot be used
    |-- OutputError      a result cannot be written, or would overwrite another one
    `-- TrainingError    the training itself went wrong

Each message is one to three lines: the config key, the value given, what is allowed, the next
step. The command line prints it without a traceback; anything else that is raised is a bug of
ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable, Sequence


class LaminaError(Exception):
    """The base of every error that is addressed to the user."""


class ConfigError(LaminaError, ValueError):
    """The configuration asks for something that cannot be done."""


class ModelError(LaminaError, ValueError):
    """A model's files are missing, incomplete, or of a kind that cannot be reduced exactly."""


class DataError(LaminaError, ValueError):
    """A data set is missing or empty, or one of its rows cannot be used."""


class OutputError(LaminaError, OSError):
    """A result cannot be written, or would overwrite the result of another run."""


class TrainingError(LaminaError, RuntimeError):
    """The training cannot go on, for instance because the loss is no longer finite."""


class Ended(BaseException):
    """Carries an error past Hydra, which would print lines of its own about it."""


def joined(problems: Sequence[str]) -> str:
    """Join several problems into one message, one line each."""
    return "\n".join(problems)


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return '; did you mean X?' for the candidate most like `name`, or nothing."""
    close = most_like(name, candidates)
    return f"; did you mean {close}?" if close else ""


def most_like(name: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate most like `name`; None if none is."""
    return next(iter(difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)), None)
