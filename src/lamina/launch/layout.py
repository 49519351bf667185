"""How many processes a run has, and on which nodes they run."""

import os
import re
import subprocess
from dataclasses import dataclass

from lamina.errors import ConfigError
from lamina.runtime import distributed
from lamina.runtime.device import visible_devices

PORTS = range(10_000, 30_000)
"""Ports on the first node where the processes of several nodes meet; each job takes one. submitit
1.5.4 would choose one of 20000 to 60000, of which Linux hands out most to other programs."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The processes of one run."""

    processes: int
    """On all nodes together."""

    nodes: int

    node: int
    """This one, 0-based."""

    @property
    def per_node(self) -> int:
        """Processes on each node."""
        return self.processes // self.nodes

    @property
    def has_to_start(self) -> bool:
        """Whether the processes are still to be started: the user's own torchrun may have."""
        return self.processes > 1 and distributed.count() == 1


def layout(processes: int | str, parallel: str) -> Layout:
    """Decide how many processes a run has; torch is not imported.

    Args:
        processes: Number on all nodes; auto for one per device, none for one.
        parallel: How they share the training.

    Raises:
        ConfigError: The machine's devices do not allow it.
    """
    nodes, node = _nodes()
    devices = visible_devices()
    if distributed.count() > 1:
        found = Layout(processes=distributed.count(), nodes=1, node=0)
        if processes not in ("auto", found.processes):
            raise ConfigError(
                f"distributed={processes}, but torchrun started {found.processes} processes: "
                "leave distributed out"
            )
    else:
        known = {"auto": nodes * max(1, devices), "none": 1}
        found = Layout(processes=int(known.get(str(processes), processes)), nodes=nodes, node=node)
        _refuse(found, devices, processes)
    if parallel == "fsdp" and (devices == 0 or found.processes == 1):
        number = "no GPU" if devices == 0 else "one process"
        raise ConfigError(
            f"parallel=fsdp shards the weights over several GPUs, but there is {number}: give "
            "parallel=auto"
        )
    return found


def _refuse(found: Layout, devices: int, processes: int | str) -> None:
    if found.processes % found.nodes:
        raise ConfigError(
            f"distributed={processes}, but there are {found.nodes} nodes: give auto or a multiple "
            f"of {found.nodes}"
        )
    if devices and found.per_node > devices:
        where = "here" if found.nodes == 1 else "on each node"
        raise ConfigError(
            f"distributed={processes}, but {devices} {'GPU is' if devices == 1 else 'GPUs are'} "
            f"visible {where}: give 1 to {devices * found.nodes}, or auto"
        )


def _nodes() -> tuple[int, int]:
    """Return the number of nodes on which SLURM started this command, and this one's index."""
    # The step's variables: inside salloc the job has several nodes, and this command runs on one.
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
    if (tasks := int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))) > nodes:
        raise ConfigError(
            f"SLURM started {tasks} tasks on {nodes} node{'s' * (nodes > 1)}: give "
            "hydra.launcher.tasks_per_node=1; each task starts its node's processes"
        )
    return nodes, int(os.environ.get("SLURM_NODEID", "0")) if nodes > 1 else 0


def is_another_node() -> bool:
    """Return whether SLURM started this command on several nodes, of which this is not the first.

    The first one keeps the record.
    """
    return _nodes()[1] > 0


def meeting_point() -> tuple[str, int]:
    """Return the address and port at which the processes of a SLURM job's nodes meet."""
    from submitit.slurm.slurm import SlurmJobEnvironment

    job = SlurmJobEnvironment()
    first, port = job.hostnames[0], PORTS[int(job.raw_job_id) % len(PORTS)]
    # A node's name need not resolve; SLURM knows its address.
    shown = subprocess.run(
        ["scontrol", "show", "node", "-o", first], capture_output=True, text=True, check=False
    )
    address = re.search(r"NodeAddr=(\S+)", shown.stdout)
    return address[1] if address else first, port


def use_one_device() -> None:
    """Hide all devices but the first from a single process: TRL 1.14 refuses to train with more."""
    if visible_devices() > 1:
        given = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        os.environ["CUDA_VISIBLE_DEVICES"] = given.split(",")[0]
