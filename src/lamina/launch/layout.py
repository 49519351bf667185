"""Decides how many processes a run has, and on which nodes."""

import os
import re
import subprocess
from dataclasses import dataclass

from lamina.errors import ConfigError
from lamina.runtime import distributed
from lamina.runtime.device import visible_devices

PORTS = range(10_000, 30_000)
"""Rendezvous ports on the first node; each job takes one. submitit 1.5.4 would choose from 20000 to
60000, but Linux gives most of those to other programs."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The processes of one run."""

    processes: int
    """Processes on all nodes."""
    nodes: int
    node: int
    """This node, 0-based."""

    @property
    def processes_per_node(self) -> int:
        """All nodes have the same number."""
        return self.processes // self.nodes

    @property
    def must_start(self) -> bool:
        """Whether Lamina must start the processes; otherwise the user's own torchrun has."""
        return self.processes > 1 and distributed.world_size() == 1


def decide_layout(processes: int | str, parallel: str) -> Layout:
    """Return the processes on all nodes, without torch: auto is one per device, none is one."""
    nodes, node = _nodes()
    devices = visible_devices()
    if distributed.world_size() > 1:
        layout = Layout(processes=distributed.world_size(), nodes=1, node=0)
        if processes not in ("auto", layout.processes):
            raise ConfigError(
                f"distributed={processes}, but torchrun started {layout.processes} processes: "
                "leave distributed out"
            )
    else:
        known = {"auto": nodes * max(1, devices), "none": 1}
        number = int(known.get(str(processes), processes))
        layout = Layout(processes=number, nodes=nodes, node=node)
        _refuse_impossible(layout, devices, processes)
    if parallel == "fsdp" and (devices == 0 or layout.processes == 1):
        reason = "no GPU" if devices == 0 else "one process"
        raise ConfigError(
            f"parallel=fsdp shards the weights over several GPUs, but there is {reason}: set "
            "parallel=auto"
        )
    return layout


def _refuse_impossible(layout: Layout, devices: int, processes: int | str) -> None:
    if layout.processes % layout.nodes:
        raise ConfigError(
            f"distributed={processes}, but there are {layout.nodes} nodes: use auto or a multiple "
            f"of {layout.nodes}"
        )
    if devices and layout.processes_per_node > devices:
        where = "here" if layout.nodes == 1 else "on each node"
        raise ConfigError(
            f"distributed={processes}, but {devices} {'GPU is' if devices == 1 else 'GPUs are'} "
            f"visible {where}: use 1 to {devices * layout.nodes}, or auto"
        )


def _nodes() -> tuple[int, int]:
    """Return how many nodes SLURM started this command on, and this node's 0-based index."""
    # SLURM_STEP_*, since a command inside salloc runs on one node of a job that has several.
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
    if (tasks := int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))) > nodes:
        raise ConfigError(
            f"SLURM started {tasks} tasks on {nodes} node{'s' * (nodes > 1)}: set "
            "hydra.launcher.tasks_per_node=1; each task starts its node's processes"
        )
    return nodes, int(os.environ.get("SLURM_NODEID", "0")) if nodes > 1 else 0


def is_later_node() -> bool:
    """Whether SLURM started this command on several nodes and this is not the first of them."""
    return _nodes()[1] > 0


def rendezvous_address() -> tuple[str, int]:
    """Return the address and port where the processes of a SLURM job's nodes meet."""
    from submitit.slurm.slurm import SlurmJobEnvironment

    job = SlurmJobEnvironment()
    first, port = job.hostnames[0], PORTS[int(job.raw_job_id) % len(PORTS)]
    # A node's name may not resolve; SLURM knows its address.
    shown = subprocess.run(
        ["scontrol", "show", "node", "-o", first], capture_output=True, text=True, check=False
    )
    address = re.search(r"NodeAddr=(\S+)", shown.stdout)
    return address[1] if address else first, port


def use_one_device() -> None:
    """Hide all devices but the first: TRL 1.14 refuses to train one process with more."""
    if visible_devices() > 1:
        given = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        os.environ["CUDA_VISIBLE_DEVICES"] = given.split(",")[0]
