"""Which kernels a training's time goes to."""

import re
import time
from collections import Counter
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

FIRST, STEPS = 6, 5
"""The first profiled step, 0-based, and how many; those before it compile and warm up."""

KINDS = {
    "attention": r"flex_attention|flash|triton_tem|fmha",
    "matrices": r"gemm|nvjet|cutlass|xmma|cublas|splitk|::mm|addmm|bmm",
    "optimizer": r"adam|multi_tensor|foreach",
    "loss": r"cross_entropy|log_softmax|softmax|nll",
    "norms": r"rms|norm",
    "copies and casts": r"memcpy|memset|copy|_to_copy",
    "other": "",
}
"""Kernel names by what they compute; the first that fits counts."""

LISTED = 25
"""Kernels named one by one."""


class Profile(TrainerCallback):
    """Profiles some steps of a training, on a GPU or, where there is none, on the CPU."""

    def __init__(self) -> None:
        self.found: dict[str, Any] | None = None
        """Wall and kernel seconds of the steps, by kind, and the slowest kernels."""
        gpu = torch.cuda.is_available()
        activities = [ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]
        self._profiler, self._gpu, self._began = profile(activities=activities), gpu, 0.0

    def on_step_begin(self, *args: Any, **_: Any) -> None:
        """Start with the first of the steps."""
        if args[1].global_step == FIRST:
            self._profiler.start()
            self._began = self._now()

    def on_step_end(self, *args: Any, **_: Any) -> None:
        """End with the last one."""
        if args[1].global_step == FIRST + STEPS:
            wall = self._now() - self._began
            self._profiler.stop()
            self.found = {"steps": STEPS, "wall_seconds": wall, **self._kernels()}

    def _now(self) -> float:
        if self._gpu:
            torch.cuda.synchronize()
        return time.monotonic()

    def _kernels(self) -> dict[str, Any]:
        device = torch.autograd.DeviceType.CUDA if self._gpu else torch.autograd.DeviceType.CPU
        seconds: Counter[str] = Counter()
        for event in self._profiler.key_averages():
            if event.device_type == device:
                spent = event.self_device_time_total if self._gpu else event.self_cpu_time_total
                seconds[event.key] += spent / 1e6
        kinds: Counter[str] = Counter()
        for name, spent in seconds.items():
            kind = next(k for k, pattern in KINDS.items() if re.search(pattern, name.lower()))
            kinds[kind] += spent
        return {
            "kernel_seconds": sum(seconds.values()),
            "kinds": dict(kinds.most_common()),
            "slowest": {name[:200]: spent for name, spent in seconds.most_common(LISTED)},
        }
