"""Attributes of modules and objects of libraries, set for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def attributes(of: Any, /, **values: Any) -> Iterator[None]:
    """Set attributes in the body; afterwards they have their former values."""
    before = {name: getattr(of, name) for name in values}
    vars(of).update(values)
    try:
        yield
    finally:
        vars(of).update(before)
