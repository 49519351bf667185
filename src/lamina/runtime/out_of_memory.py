"""Out-of-memory errors of an accelerator or the machine, with advice."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lamina.errors import LaminaError, TrainingError

SHORTAGES = ("defaultcpuallocator", "out of memory", "cublas_status_alloc_failed")
"""Parts of the messages of failed allocations, in lower case."""


def is_memory_error(error: BaseException) -> bool:
    """Whether an error is a failed allocation on an accelerator or the machine."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error).lower() for part in SHORTAGES)


@contextmanager
def memory_errors(what: str, advice: Callable[[], str]) -> Iterator[None]:
    """Turn a failed allocation into a TrainingError: `what` does not fit, and advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, LaminaError) or not is_memory_error(error):
            raise
        raise TrainingError(f"out of memory: {what} does not fit; {advice()}") from error
