"""Runs a module or a script as it is, but for a clock at the end of every optimizer step.

    python benchmarks/timed.py TIMES.json train experiment=quickstart ...
    python benchmarks/timed.py TIMES.json benchmarks/plain_trl.py MODEL ...

The clock is a callback that is given to every SFTTrainer. It is put there when TRL's module is
imported, and not earlier, so that it changes nothing in what is imported when. TIMES.json then
holds seconds since the epoch and CPU seconds of this process at

    called      SFTTrainer's constructor: imports, arguments, data and model are behind it
    built       its end: adapter, packing and optimizer arguments are behind it
    steps       the end of each optimizer step

with each step's loss and all training arguments.
"""

import importlib.util
import json
import runpy
import sys
import time
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

PATCHED = "trl.trainer.sft_trainer"


class PatchOnImport(MetaPathFinder):
    """Calls a function with one module, right after that module's import."""

    def __init__(self, name: str, patch: Callable[[ModuleType], None]) -> None:
        self.name, self.patch = name, patch

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Leave every other module to the finders that come next."""
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            self.patch(module)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


def now() -> tuple[float, float]:
    """Return the time and this process's CPU time, both in seconds."""
    return time.time(), time.process_time()


def add_clock(trl_module: ModuleType, output: Path) -> None:
    """Make every SFTTrainer write its times to a file when its training ends."""
    from transformers import TrainerCallback

    record: dict[str, Any] = {"steps": [], "losses": []}

    class Clock(TrainerCallback):
        """Notes the time of each step and its loss."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            record["steps"].append(now())

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            record["losses"] += [logs["loss"]] if "loss" in logs else []

        def on_train_end(self, args: Any, *_: Any, **__: Any) -> None:
            output.write_text(json.dumps({**record, "arguments": args.to_dict()}))

    construct = trl_module.SFTTrainer.__init__

    def construct_with_clock(self: Any, *arguments: Any, **options: Any) -> None:
        record["called"] = now()
        construct(self, *arguments, **options)
        record["built"] = now()
        self.add_callback(Clock())

    trl_module.SFTTrainer.__init__ = construct_with_clock


def run_patched(add: Callable[[ModuleType, Path], None]) -> None:
    """Run what the arguments name, once TRL is imported with something added to it.

    Args:
        add: Gets TRL's module and the file that the first argument names.
    """
    output, name = Path(sys.argv[1]), sys.argv[2]
    sys.argv = sys.argv[2:]
    sys.meta_path.insert(0, PatchOnImport(PATCHED, lambda module: add(module, output)))
    if name.endswith(".py"):
        runpy.run_path(name, run_name="__main__")
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    run_patched(add_clock)
