"""How many processes a run has, and on which machines they are."""

import os
import re
import subprocess
from dataclasses import dataclass

from lamina.errors import ConfigError
from lamina.runtime import distributed
from lamina.runtime.device import visible_devices

PORTS = range(10_000, 30_000)
"""Ports of the first node on which processes of several nodes meet, one of them a job."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The processes of one run."""

    processes: int
    """On all nodes."""

    nodes: int
    """Machines."""

    node: int
    """This one, 0-based."""

    @property
    def per_node(self) -> int:
        """Processes on each node."""
        return self.processes // self.nodes

    @property
    def has_to_start(self) -> bool:
        """Whether the processes are still to be started: torchrun may have done it."""
        return self.processes > 1 and distributed.count() == 1


def layout(processes: int | str, parallel: str) -> Layout:
    """Decide how many processes there are, from what the machine has; torch is not imported.

    Args:
        processes: The number, over all nodes; auto for one a device, none for one.
        parallel: How they share the training.

    Raises:
        ConfigError: There are not so many devices, or none of a kind that can do it.
    """
    nodes, node = _nodes()
    devices = visible_devices()
    if distributed.count() > 1:
        found = Layout(processes=distributed.count(), nodes=1, node=0)
        if processes not in ("auto", found.processes):
            raise ConfigError(
                f"distributed={processes}, but torchrun has started {found.processes} "
                "processes: leave it out"
            )
    else:
        known = {"auto": nodes * max(1, devices), "none": 1}
        found = Layout(processes=int(known.get(str(processes), processes)), nodes=nodes, node=node)
        _refuse(found, devices, processes)
    if parallel == "fsdp" and (devices == 0 or found.processes == 1):
        has = "there is no GPU" if devices == 0 else "there is one process"
        raise ConfigError(
            f"parallel=fsdp, but {has}: the weights could not be spread; give parallel=auto"
        )
    return found


def _refuse(found: Layout, devices: int, processes: int | str) -> None:
    if found.processes % found.nodes:
        raise ConfigError(
            f"distributed={processes}, but there are {found.nodes} nodes: give auto, or a "
            "multiple of that"
        )
    if devices and found.per_node > devices:
        where = "here" if found.nodes == 1 else "on each node"
        raise ConfigError(
            f"distributed={processes}, but {devices} {'GPU is' if devices == 1 else 'GPUs are'} "
            f"visible {where}: give 1 to {devices * found.nodes}, or auto"
        )


def _nodes() -> tuple[int, int]:
    """Return the nodes on which SLURM started this command, and this one's 0-based place."""
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
    if (tasks := int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))) > nodes:
        raise ConfigError(
            f"SLURM started {tasks} tasks on {nodes} node{'s' * (nodes > 1)}: give "
            "hydra.launcher.tasks_per_node=1; each task starts its node's processes"
        )
    return nodes, int(os.environ.get("SLURM_NODEID", "0")) if nodes > 1 else 0


def is_another_node() -> bool:
    """Whether SLURM started this command on several nodes, and another one keeps the record."""
    return _nodes()[1] > 0


def meeting_point() -> tuple[str, int]:
    """Return address and port on which the processes of a SLURM job's nodes find each other."""
    from submitit.slurm.slurm import SlurmJobEnvironment

    first = SlurmJobEnvironment().hostnames[0]
    port = PORTS[int(os.environ["SLURM_JOB_ID"]) % len(PORTS)]
    # A node's name need not be one that resolves; SLURM knows the address.
    shown = subprocess.run(
        ["scontrol", "show", "node", "-o", first], capture_output=True, text=True, check=False
    )
    address = re.search(r"NodeAddr=(\S+)", shown.stdout)
    return address[1] if address else first, port


def use_one_device() -> None:
    """Let a single process see the first device only: with more TRL 1.14 refuses to train."""
    if visible_devices() > 1:
        given = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        os.environ["CUDA_VISIBLE_DEVICES"] = given.split(",")[0]
