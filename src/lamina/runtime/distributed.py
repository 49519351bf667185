"""The processes that share one training, and which of them this is: torchrun says it to each.

Without torchrun there is one process, it is the first one, and nothing is sent anywhere.
"""

import os
import signal
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

REQUEUE_SIGNAL = signal.SIGUSR2
"""What submitit asks SLURM to send before a job's time is over, or when it is preempted."""

T = TypeVar("T")


def rank() -> int:
    """Return this process's 0-based number among those of the run."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """Return how many processes share the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that writes files and speaks for the run."""
    return rank() == 0


def in_turn(name: str, make: Callable[[], T]) -> T:
    """Make something that is kept for all, such as a scan, in the first process before the others.

    Works before the processes can add anything up.

    Args:
        name: Of what is made; once in a run.
        make: Takes it from where it was kept, or makes it.
    """
    if count() == 1:
        return make()
    if not is_first():
        store().wait([f"lamina/{name}"], timedelta(days=1))
        return make()
    made = make()
    store().set(f"lamina/{name}", "")
    return made


def store() -> Any:
    """Connect to torchrun's store, where the processes find each other anyway."""
    from torch.distributed import TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False)


def summed(values: Sequence[float]) -> list[float]:
    """Return the sum over all processes of each value; all of them have to call it.

    Args:
        values: As many in every process.
    """
    if count() == 1:
        return list(values)
    import torch
    from torch.distributed import all_reduce

    from lamina.runtime.device import compute_device

    total = torch.tensor(values, dtype=torch.float64, device=compute_device())
    all_reduce(total)
    return total.tolist()


def from_first(value: float | None) -> float | None:
    """Return the first process's value in all of them; all of them have to call it."""
    mine = value if is_first() else None
    known, total = summed([mine is not None, mine or 0.0])
    return total if known else None


def any_of(flag: bool) -> bool:
    """Whether the flag is set in one of the processes; all of them have to call it."""
    return summed([flag])[0] > 0


def wait_for_all() -> None:
    """Go on once all processes have come here: what the first one wrote can be read then."""
    summed([0.0])
