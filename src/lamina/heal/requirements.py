"""Packages, devices and compilers that training arguments need; torch is not imported."""

import importlib.util
import os
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from lamina.runtime.device import installed, visible_devices

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
"""The package of each transformers optimizer that needs another one."""

OPTIMIZER_FAMILIES = {
    "galore": "galore-torch",
    "apollo": "apollo-torch",
    "schedule_free": "schedulefree",
}
"""The same, by the prefix of the optimizers' names."""


def missing_requirements(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Refuse fields of SFTConfig that need a package, device or compiler this machine lacks."""
    has_gpu, compiles = bool(visible_devices()), arguments.get("torch_compile") is True
    if arguments.get("activation_offloading") is True and not has_gpu:
        yield "activation_offloading=true needs a GPU: leave it out"
    # torch.compile emits Triton on a GPU and C++ on a CPU.
    if compiles and has_gpu and importlib.util.find_spec("triton") is None:
        yield "torch_compile=true needs Triton on a GPU: pip install triton, or leave it out"
    if compiles and not has_gpu and shutil.which(os.environ.get("CXX", "g++")) is None:
        yield "torch_compile=true needs a C++ compiler: install g++, or leave it out"
    name = str(arguments.get("optim"))
    families = (package for start, package in OPTIMIZER_FAMILIES.items() if name.startswith(start))
    package = OPTIMIZERS.get(name) or next(families, None)
    if package and not installed(package):
        yield f"optim={name} needs {package}: pip install {package}, or leave it out"
    elif name.startswith("paged_") and not has_gpu:
        yield f"optim={name} needs a GPU to page from: use one without paged_, or leave it out"
