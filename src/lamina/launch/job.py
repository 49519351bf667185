"""What each process of a run is told: the config as it was settled once, and where it writes."""

import json
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from lamina.runtime import distributed

KEY = "lamina/job"
"""Under which torchrun's own store holds the job."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run, as its processes get it."""

    config: dict[str, Any]
    """The composed config, interpolations resolved."""

    overrides: list[str]
    """The command line's arguments, for the record."""

    notes: list[str]
    """What was decided for the run, for the record."""

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


def announce(job: Job) -> None:
    """Give a job to the processes that a person's own torchrun started beside this one."""
    distributed.store().set(KEY, job.dumps())


def awaited() -> Job:
    """Wait for what the first of the processes announces."""
    store = distributed.store()
    store.wait([KEY], timedelta(hours=1))
    return Job.loads(store.get(KEY).decode())
