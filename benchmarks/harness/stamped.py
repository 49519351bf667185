"""Runs a module or a script unchanged, but for a clock of the benchmark's own in its training.

    python benchmarks/harness/stamped.py STAMPS.json train experiment=quickstart ...
    python benchmarks/harness/stamped.py STAMPS.json benchmarks/harness/plain_trl.py SETTINGS.json
    python benchmarks/harness/stamped.py --profile STAMPS.json ...     profiles five steps, too

Every SFTTrainer gets a callback. It is added when TRL's module is imported and not earlier, so it
changes nothing about what is imported when. STAMPS.json holds, in seconds of time.monotonic,

    called, built   [time, CPU time] before and after SFTTrainer's constructor
    begin, end      of the training
    steps           the end of each optimizer step, after the accelerator has finished it
    steps_cpu       this process's CPU time then
    left_out        [from, to]: from a step's end to the end of the evaluation or save behind it
    batches         for each forward pass: its step, its documents' lengths, its trained tokens
    losses          as logged
    memory          peak bytes during training
    attention       transformers' name of the attention in use
    arguments       all training arguments
    profile         with --profile: see profiled.py

Document lengths are read off the batches that the model gets: position ids restart in each
document, or attention masks end where the padding begins.
"""

import importlib.util
import json
import runpy
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
        """Find that one module; leave all others to the next finders."""
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
    """Return the time and this process's CPU time, in seconds."""
    return time.monotonic(), time.process_time()


def document_lengths(inputs: Mapping[str, Any]) -> list[int]:
    """Return the tokens of each document in a batch."""
    if "position_ids" not in inputs:
        return list(map(int, inputs["attention_mask"].sum(dim=1).tolist()))
    positions = inputs["position_ids"].flatten().tolist()
    starts = [index for index, position in enumerate(positions) if position == 0]
    return [b - a for a, b in zip(starts, [*starts[1:], len(positions)], strict=True)]


def add_clock(trl_module: ModuleType, output: Path, *, profile: bool) -> None:
    """Make every SFTTrainer write its stamps to a file when its training ends."""
    import torch
    from transformers import TrainerCallback

    from harness.profiled import Profile
    from lamina.runtime.device import peak_memory_bytes, reset_peak_memory

    stamps: dict[str, Any] = {
        name: [] for name in ("steps", "steps_cpu", "left_out", "batches", "losses")
    }

    class Clock(TrainerCallback):
        """Notes when things end."""

        def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
            reset_peak_memory()
            stamps["attention"] = model.config._attn_implementation
            stamps["begin"] = time.monotonic()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            for name, seconds in zip(("steps", "steps_cpu"), now(), strict=True):
                stamps[name].append(seconds)

        def on_evaluate(self, *_: Any, **__: Any) -> None:
            stamps["left_out"].append([stamps["steps"][-1], time.monotonic()])

        def on_save(self, *_: Any, **__: Any) -> None:
            self.on_evaluate()

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            stamps["losses"] += [logs["loss"]] if "loss" in logs else []

        def on_train_end(self, args: Any, *_: Any, **__: Any) -> None:
            stamps["end"] = time.monotonic()
            stamps["memory"] = peak_memory_bytes()
            stamps["profile"] = profiler.found
            output.write_text(json.dumps({**stamps, "arguments": args.to_dict()}))

    profiler = Profile()
    trainer = trl_module.SFTTrainer
    construct, train_on = trainer.__init__, trainer.training_step

    def construct_with_clock(self: Any, *arguments: Any, **options: Any) -> None:
        stamps["called"] = now()
        construct(self, *arguments, **options)
        stamps["built"] = now()
        for callback in [profiler] * profile + [Clock()]:
            self.add_callback(callback)

    def note_and_train(self: Any, model: Any, inputs: Mapping[str, Any], *further: Any) -> Any:
        targets = int((inputs["labels"][:, 1:] != -100).sum())
        stamps["batches"].append([len(stamps["steps"]), document_lengths(inputs), targets])
        return train_on(self, model, inputs, *further)

    trainer.__init__, trainer.training_step = construct_with_clock, note_and_train


def main() -> None:
    """Run what the arguments name, with the clock added once TRL is imported."""
    profile = "--profile" in sys.argv[1:2]
    output, name, *_ = sys.argv[1 + profile :]
    sys.argv = sys.argv[2 + profile :]
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    patch = partial(add_clock, output=Path(output), profile=profile)
    sys.meta_path.insert(0, PatchOnImport(PATCHED, patch))
    if name.endswith(".py"):
        runpy.run_path(name, run_name="__main__")
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
