"""Errors that a user can act on.

A message has one to three lines: the config key, the value given, what is allowed, the next step.
The command line prints it without a traceback. Any other exception is a bug in Lamina.
"""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class LaminaError(Exception):
    """The base of all errors addressed to the user."""


class ConfigError(LaminaError, ValueError):
    """The config asks for something impossible."""


class ModelError(LaminaError, ValueError):
    """A model's files are missing, incomplete, or of a kind that cannot be reduced exactly."""


class DataError(LaminaError, ValueError):
    """A data set is missing or empty, or has a row that cannot be used."""


class BadRowError(Exception):
    """An unusable row; the message says what was found and what is expected.

    The caller that knows the row's place raises a DataError, or leaves the row out.
    """


class OutputError(LaminaError, OSError):
    """A result cannot be written, or would overwrite the result of another run."""


class TrainingError(LaminaError, RuntimeError):
    """The training failed, for instance because its loss is no longer finite."""


class Ended(BaseException):
    """Carries an error's message past Hydra, which would add its own lines."""


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def naming(
    key: str, *causes: type[Exception], kind: type[LaminaError] = ConfigError
) -> Iterator[None]:
    """Turn a library's refusal in the body into an error that names the config key."""
    try:
        yield
    except LaminaError:
        raise
    except causes as error:
        raise kind(f"{key}: {reason_of(error)}") from error


def either(names: Sequence[str]) -> str:
    """Join names into 'a, b or c'."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def in_yaml(value: Any) -> str:
    """Return a value as a config file has it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def did_you_mean(name: str, candidates: Iterable[str], cutoff: float = 0.6) -> str:
    """Return '; did you mean X?' for the most similar candidate, or an empty string."""
    close = closest(name, candidates, cutoff)
    return f"; did you mean {close}?" if close else ""


def closest(name: str, candidates: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the most similar candidate, if any is close."""
    return next(iter(difflib.get_close_matches(name, list(candidates), n=1, cutoff=cutoff)), None)
