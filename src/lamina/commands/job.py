"""What each process of a run is told: the config as it was settled once, and where it writes."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, TypeVar

from lamina.measure import ranks

KEY, MADE = "lamina/job", "lamina/made"
"""Under which torchrun's own store holds the job, and that what all need is there."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run, as its processes get it."""

    config: dict[str, Any]
    """The composed config, interpolations resolved."""

    overrides: list[str]
    """The command line's arguments, for the record."""

    folder: str
    """The run folder."""

    logging: dict[str, Any] | None
    """Hydra's job_logging, resolved; None where it was turned off."""

    requeues: bool
    """Whether a cluster's signal asks for a checkpoint and the end of the process."""

    def dumps(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> "Job":
        """Read what `dumps` returned."""
        return cls(**json.loads(text))


def in_turn(make: Callable[[], T]) -> T:
    """Make something that is kept for all, such as a scan, in the first process before the others.

    Args:
        make: Takes it from where it was kept, or makes it.
    """
    if not ranks.is_first():
        _store().wait([MADE], timedelta(days=1))
        return make()
    made = make()
    _store().set(MADE, "")
    return made


def announce(job: Job) -> None:
    """Give a job to the processes that a person's own torchrun started beside this one."""
    _store().set(KEY, job.dumps())


def awaited() -> Job:
    """Wait for what the first of the processes announces."""
    store = _store()
    store.wait([KEY], timedelta(hours=1))
    return Job.loads(store.get(KEY).decode())


def _store() -> Any:
    """Connect to torchrun's store, where the processes find each other anyway."""
    from torch.distributed import TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False)
