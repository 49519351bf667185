"""The number of processes follows from the environment alone."""

import pytest

from lamina.errors import ConfigError
from lamina.launch.layout import PORTS, Layout, decide_layout, rendezvous_address, use_one_device
from lamina.runtime import device
from lamina.runtime.device import has_gpu, visible_devices

NAMES = ("CUDA_VISIBLE_DEVICES", "RANK", "WORLD_SIZE", "SLURM_NODEID")
STEP = ("SLURM_STEP_NUM_NODES", "SLURM_STEP_NUM_TASKS")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, *STEP):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "")  # hides nvidia-smi
    monkeypatch.setattr(device, "has_gpu", lambda: True)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [("0,1", 2), ("0", 1), ("", 0), ("-1", 0), ("2, 5,7", 3), ("1,-1,2", 1), ("GPU-a,GPU-b", 2)],
)
def test_devices_are_counted_without_torch(
    visible: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_devices() == expected


def test_the_variable_counts_nothing_on_a_machine_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device, "has_gpu", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert visible_devices() == 0
    assert decide_layout("auto", "auto") == Layout(processes=1, nodes=1, node=0)


@pytest.mark.parametrize(
    ("listed", "devices"),
    [("#!/bin/sh\necho No devices were found\n", 0), ("", 0), ("#!/bin/sh\necho GPU 0: One\n", 2)],
)
def test_a_drivers_tool_without_a_gpu_is_no_gpu(
    listed: str, devices: int, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(listed)
    tool.chmod(0o755)
    monkeypatch.setattr(device, "has_gpu", has_gpu)
    monkeypatch.setattr(device, "GPU_FILES", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert visible_devices() == devices
    assert decide_layout("auto", "auto").processes == max(1, devices)


def test_without_the_variable_nvidia_smi_counts(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert visible_devices() == 0
    tool = tmp_path / "nvidia-smi"
    lines = "GPU 0: One (UUID: GPU-a)\\n  MIG 1g.18gb Device 0: (UUID: MIG-b)\\nGPU 1: Two\\n"
    tool.write_text(f"#!/bin/sh\nprintf '{lines}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_devices() == 2


@pytest.mark.parametrize(
    ("distributed", "devices", "nodes", "expected"),
    [
        ("auto", "0,1", 1, 2),
        ("auto", "", 1, 1),
        ("auto", "", 2, 2),
        ("auto", "0,1,2,3", 2, 8),
        ("none", "0,1", 1, 1),
        (2, "", 1, 2),
        (2, "0,1,2", 1, 2),
        (4, "0,1", 2, 4),
    ],
)
def test_each_device_gets_one_process(
    distributed: int | str,
    devices: str,
    nodes: int,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    for name in STEP:
        monkeypatch.setenv(name, str(nodes))
    found = decide_layout(distributed, "auto")
    assert (found.processes, found.processes_per_node, found.nodes) == (
        expected,
        expected // nodes,
        nodes,
    )
    assert found.must_start == (expected > 1)


@pytest.mark.parametrize(
    ("distributed", "parallel", "environment", "message"),
    [
        (
            3,
            "auto",
            {"CUDA_VISIBLE_DEVICES": "0,1"},
            "distributed=3, but 2 GPUs are visible here: use 1 to 2, or auto",
        ),
        (
            8,
            "auto",
            {"CUDA_VISIBLE_DEVICES": "0", **dict.fromkeys(STEP, "2")},
            "distributed=8, but 1 GPU is visible on each node: use 1 to 2, or auto",
        ),
        (
            3,
            "auto",
            dict.fromkeys(STEP, "2"),
            "distributed=3, but there are 2 nodes: use auto or a multiple of 2",
        ),
        (
            "none",
            "auto",
            dict.fromkeys(STEP, "2"),
            "distributed=none, but there are 2 nodes: use auto or a multiple of 2",
        ),
        (
            2,
            "fsdp",
            {},
            "parallel=fsdp shards the weights over several GPUs, but there is no GPU: set "
            "parallel=auto",
        ),
        (
            "auto",
            "fsdp",
            {"CUDA_VISIBLE_DEVICES": "0"},
            "parallel=fsdp shards the weights over several GPUs, but there is one process: set "
            "parallel=auto",
        ),
        (
            3,
            "auto",
            {"RANK": "0", "WORLD_SIZE": "2"},
            "distributed=3, but torchrun started 2 processes: leave distributed out",
        ),
        (
            "auto",
            "auto",
            {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "2"},
            "SLURM started 2 tasks on 1 node: set hydra.launcher.tasks_per_node=1; each task "
            "starts its node's processes",
        ),
    ],
)
def test_a_layout_that_the_machine_does_not_have_is_refused(
    distributed: int | str,
    parallel: str,
    environment: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as refused:
        decide_layout(distributed, parallel)
    assert str(refused.value) == message


def test_processes_of_torchrun_are_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert decide_layout("auto", "auto") == Layout(processes=2, nodes=1, node=0)
    assert not decide_layout("auto", "auto").must_start


def test_a_single_process_sees_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    use_one_device()
    assert visible_devices() == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    use_one_device()
    assert visible_devices() == 0


def test_nodes_meet_at_the_first_one_on_the_jobs_port(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "scontrol"
    tool.write_text('#!/bin/sh\necho "NodeName=$4 NodeAddr=10.0.0.7 Port=1"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu[07-08]")
    monkeypatch.setenv("SLURM_JOB_ID", "20123")
    assert rendezvous_address() == ("10.0.0.7", PORTS[123])
    tool.write_text("#!/bin/sh\nexit 1\n")
    assert rendezvous_address() == ("gpu07", PORTS[123])
