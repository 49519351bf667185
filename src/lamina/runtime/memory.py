"""Running out of memory, on an accelerator or on the machine, as an error to act on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lamina.errors import LaminaError, TrainingError

SAID = ("defaultcpuallocator", "out of memory", "cublas_status_alloc_failed")
"""Parts of messages of a RuntimeError that says that memory is short."""


def is_memory_error(error: BaseException) -> bool:
    """Whether an error says that memory is short, the accelerator's or the machine's."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error).lower() for part in SAID)


@contextmanager
def memory_errors(what: str, advised: Callable[[], str]) -> Iterator[None]:
    """Say what to do where memory does not suffice.

    Args:
        what: That does not fit, such as `the training`.
        advised: Says what to do.

    Raises:
        TrainingError: Memory is short.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, LaminaError) or not is_memory_error(error):
            raise
        raise TrainingError(f"out of memory: {what} does not fit; {advised()}") from error
