"""The processes of one training, which torchrun starts and numbers; without it there is one."""

import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

REQUEUE_SIGNAL = signal.SIGUSR2
"""The signal submitit has SLURM send before a job times out or is preempted."""

T = TypeVar("T")

_WAITS = count()
"""Numbers the waits of this process."""

_CALLS = Counter[str]()
"""How often `first_process_first` was called, by name."""


def rank() -> int:
    """Return this process's 0-based number in the run."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return how many processes share the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that writes files and reports."""
    return rank() == 0


def first_process_first(name: str, make: Callable[[], T]) -> T:
    """Call `make` in the first process, and in the others once the first has finished.

    For results that the first one saves for all, such as a scan. It works before the process group
    exists. Each process calls it equally often for one `name`.
    """
    if world_size() == 1:
        return make()
    _CALLS[name] += 1
    key = f"lamina/{name}/{_CALLS[name]}"
    if not is_first():
        store().wait([key], timedelta(days=1))
    made = make()
    if is_first():
        store().set(key, "")
    return made


def wait_for_first() -> None:
    """Wait until the first process is here, too, however long it works; a collective times out.

    All processes must call it.
    """
    if world_size() > 1:
        key = f"lamina/wait/{next(_WAITS)}"
        if is_first():
            store().set(key, "")
        else:
            store().wait([key], timedelta(days=7))


def store() -> Any:
    """Connect to torchrun's key-value store."""
    from torch.distributed import TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False)


# All processes must call each function below.


def summed(values: Sequence[float]) -> list[float]:
    """Return the sum of each value over all processes."""
    if world_size() == 1:
        return list(values)
    import torch
    from torch.distributed import all_reduce

    from lamina.runtime.device import compute_device

    total = torch.tensor(values, dtype=torch.float64, device=compute_device())
    all_reduce(total)
    return total.tolist()


def gathered(value: T) -> list[T]:
    """Return every process's value, in the order of their numbers."""
    if world_size() == 1:
        return [value]
    from torch.distributed import all_gather_object

    found: list[Any] = [None] * world_size()
    all_gather_object(found, value)
    return found


def wait_for_all() -> None:
    """Wait for all processes, after which what the first one wrote can be read."""
    summed([0.0])
