"""The devices of this machine: their number, names and memory, and errors for want of it."""

import ctypes
import gc
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

from lamina.errors import LaminaError, TrainingError

PROCESS = Path("/proc/self")
"""Statistics of this process on Linux."""

SHORTAGES = ("defaultcpuallocator", "out of memory", "cublas_status_alloc_failed")
"""Parts of the messages of failed allocations, in lower case."""

GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Of NVIDIA's, AMD's and Windows' drivers."""


def compute_device() -> str:
    """Return this process's device: its own accelerator, or cpu."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def visible_devices() -> int:
    """Return the number of accelerators this process may use, without importing torch."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not has_gpu():
        return 0
    if given is not None:
        # Like CUDA: an invalid entry hides those after it.
        names = [name.strip() for name in given.split(",")]
        return next((n for n, name in enumerate(names) if name in ("", "-1")), len(names))
    return _listed_devices(shutil.which("nvidia-smi"))


def has_gpu() -> bool:
    """Whether this machine has a GPU, by its driver's device files or tool."""
    tool = shutil.which("nvidia-smi")
    return any(map(os.path.exists, GPU_FILES)) or _listed_devices(tool) > 0


@cache
def _listed_devices(tool: str | None) -> int:
    """Count the GPUs that the driver's tool lists, which can take a second."""
    if tool is None:
        return 0
    try:
        done = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    except OSError:  # no program for this machine
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())


def installed(package: str) -> bool:
    """Whether a package is installed; it is not imported."""
    return any(distributions(name=package))


def release_memory() -> None:
    """Free the memory of unreferenced models, including those in reference cycles."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def device_name() -> str:
    """Return the accelerator's name, or the processor's with torch's number of threads."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"


def free_memory_bytes() -> int:
    """Return the free memory of the accelerator, or of the machine."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def reset_peak_memory() -> None:
    """Reset the peak memory use, so that a training's peak excludes what came before it."""
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
    with suppress(AttributeError):  # glibc keeps what earlier jobs freed; others have no such call
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # not Linux, or not allowed: the peak then includes earlier jobs
        (PROCESS / "clear_refs").write_text("5")


def peak_memory_bytes() -> int:
    """Return the peak memory use of the accelerator, or this process's peak resident set."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        lines = (PROCESS / "status").read_text().splitlines()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


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


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
