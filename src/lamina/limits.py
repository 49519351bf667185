"""What a settings field takes beyond its type: `learning_rate: Annotated[float, ABOVE_ZERO]`.

Preflight holds every field of a composed config against its limit and names the config key.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Limit:
    """A test of a value; None passes, since a type says whether it may be None."""

    fits: Callable[[Any], bool]

    advice: str
    """What to give instead, for the end of an error message."""


def one_of(*names: str) -> Limit:
    """Allow a few words."""
    return Limit(lambda value: value in names, f"give {', '.join(names[:-1])} or {names[-1]}")


ABOVE_ZERO = Limit(lambda value: value > 0, "give more than 0")
AT_LEAST_ONE = Limit(lambda value: value >= 1, "give 1 or more")
NOT_NEGATIVE = Limit(lambda value: value >= 0, "give 0 or more")
FRACTION = Limit(lambda value: 0 <= value < 1, "give 0 to below 1")
WHOLE_TOKENS = Limit(lambda value: value >= 1, "give a whole number of tokens, such as 4096")
LAYER_INDEX = Limit(
    lambda value: value == "auto" or type(value) is int,
    "expected a whole number (0-based), or auto for the layer that costs least",
)
