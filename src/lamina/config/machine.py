"""What this machine, and the packages on it, can do of what is asked for."""

import importlib.util
import os
import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lamina.config.ranges import at
from lamina.heal import kernels
from lamina.runtime.device import visible_devices

BITSANDBYTES = (
    "adamw_bnb_8bit adamw_8bit ademamix ademamix_8bit lion_8bit lion_32bit rmsprop_bnb "
    "rmsprop_bnb_8bit rmsprop_bnb_32bit paged_adamw_32bit paged_adamw_8bit paged_ademamix_32bit "
    "paged_ademamix_8bit paged_lion_32bit paged_lion_8bit"
).split()

OPTIMIZERS = {
    **dict.fromkeys(BITSANDBYTES, "bitsandbytes"),
    **dict.fromkeys(("adamw_torch_4bit", "adamw_torch_8bit"), "torchao"),
    **dict.fromkeys(("lomo", "adalomo"), "lomo-optim"),
    "grokadamw": "grokadamw",
    "stable_adamw": "torch-optimi",
}
"""Optimizers of transformers that come from other packages."""

FAMILIES = {"galore": "galore-torch", "apollo": "apollo-torch", "schedule_free": "schedulefree"}
"""The same, by the beginnings of their names."""


def problems(content: Mapping[str, Any]) -> Iterator[str]:
    """Name each setting that needs a device, a package or a compiler that is not there.

    Args:
        content: The resolved config.
    """
    yield from filter(None, (kernels.attention_problem(at(content, "attention"), _dtype(content)),))
    yield from filter(None, (kernels.liger_problem(at(content, "kernels")),))
    arguments = content["trainer"]["args"]
    if arguments.get("activation_offloading") is True and not visible_devices():
        yield "activation_offloading=true needs a GPU: leave it out"
    if arguments.get("torch_compile") is True:
        yield from _compiler()
    yield from _optimizer(arguments.get("optim"))
    adapter = str(at(content, "adapter._target_"))
    if adapter.endswith("QLora.of") and not installed("bitsandbytes"):
        yield "adapter=qlora needs bitsandbytes: pip install bitsandbytes, or choose adapter=lora"


def installed(package: str) -> bool:
    """Whether a package is installed; it is not imported."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _dtype(content: Mapping[str, Any]) -> str:
    automatic = "bfloat16" if content.get("bf16") else "float32"
    return automatic if content.get("dtype") == "auto" else str(content.get("dtype"))


def _compiler() -> Iterator[str]:
    """What torch.compile translates to: C++ on a processor, Triton on a GPU."""
    if visible_devices():
        if importlib.util.find_spec("triton") is None:
            yield "torch_compile=true needs Triton on a GPU: pip install triton, or leave it out"
    elif shutil.which(os.environ.get("CXX", "g++")) is None:
        yield "torch_compile=true needs a C++ compiler: install g++, or leave it out"


def _optimizer(name: Any) -> Iterator[str]:
    families = (package for start, package in FAMILIES.items() if str(name).startswith(start))
    package = OPTIMIZERS.get(name) or next(families, None)
    if package and not installed(package):
        yield f"optim={name} needs {package}: pip install {package}, or leave it out"
    elif str(name).startswith("paged_") and not visible_devices():
        yield f"optim={name} needs a GPU to page from: give one without paged_, or leave it out"
