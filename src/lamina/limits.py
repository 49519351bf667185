"""Limits on settings, checked by preflight: `learning_rate: Annotated[float, ABOVE_ZERO]`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lamina.errors import either


@dataclass(frozen=True)
class Limit:
    """A test of a value; None always passes, since the type decides whether it is allowed."""

    fits: Callable[[Any], bool]
    advice: str
    """What to use instead; the end of the error message."""


def one_of(*names: str, note: str = "") -> Limit:
    """Allow only the given names; the advice ends with `note`."""
    return Limit(lambda value: value in names, f"use {either(names)}{note}")


def named(advice: str) -> Limit:
    """Allow a path or a word, but neither nothing nor what YAML's true and false become as text."""
    return Limit(lambda value: value not in ("", "True", "False"), advice)


FOLDER = named("use a folder")
ABOVE_ZERO = Limit(lambda value: value > 0, "use a value above 0")
AT_LEAST_ONE = Limit(lambda value: value >= 1, "use 1 or more")
NOT_NEGATIVE = Limit(lambda value: value >= 0, "use 0 or more")
FRACTION = Limit(lambda value: 0 <= value < 1, "use a value from 0 to below 1")
WHOLE_TOKENS = Limit(lambda value: value >= 1, "use a whole number of tokens, such as 4096")
LAYER_INDEX = Limit(
    lambda value: value == "auto" or type(value) is int,
    "expected a whole number (0-based), or auto for the layer that costs least",
)
