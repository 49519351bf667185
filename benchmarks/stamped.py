"""Runs a module or a script as it is, and stamps its steps with a clock of the benchmark's own.

    python benchmarks/stamped.py STAMPS.json train experiment=quickstart ...
    python benchmarks/stamped.py STAMPS.json benchmarks/gpu_plain.py MODEL ...

STAMPS.json then holds, in seconds of time.monotonic,

    begin, end    of the training
    steps         the end of each optimizer step, the accelerator's work included
    left_out      [from, to]: from a step's end to the end of the evaluation or save behind it
    batches       for each forward pass: its step, its documents' lengths, its trained tokens
    memory        bytes of memory: the most that was in use in training
    attention     transformers' name of what computes it

The documents are read off the batches that the model gets: position ids begin anew in each, or
attention masks end where the padding begins.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from timed import run_patched


def lengths(inputs: Mapping[str, Any]) -> list[int]:
    """Return the tokens of each document in a batch."""
    if "position_ids" not in inputs:
        return list(map(int, inputs["attention_mask"].sum(dim=1).tolist()))
    positions = inputs["position_ids"].flatten().tolist()
    starts = [index for index, position in enumerate(positions) if position == 0]
    return [b - a for a, b in zip(starts, [*starts[1:], len(positions)], strict=True)]


def stamp(trl_module: ModuleType, output: Path) -> None:
    """Make every SFTTrainer write its stamps to a file when its training ends."""
    import torch
    from transformers import TrainerCallback

    from lamina.runtime.device import forget_peak_memory, peak_memory_bytes

    noted: dict[str, Any] = {"steps": [], "left_out": [], "batches": []}

    class Stamps(TrainerCallback):
        """Notes when things end."""

        def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
            forget_peak_memory()
            noted["attention"] = model.config._attn_implementation
            noted["begin"] = time.monotonic()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            noted["steps"].append(time.monotonic())

        def on_evaluate(self, *_: Any, **__: Any) -> None:
            noted["left_out"].append([noted["steps"][-1], time.monotonic()])

        def on_save(self, *_: Any, **__: Any) -> None:
            self.on_evaluate()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            noted["end"] = time.monotonic()
            noted["memory"] = peak_memory_bytes()
            output.write_text(json.dumps(noted))

    trainer = trl_module.SFTTrainer
    construct, train_on = trainer.__init__, trainer.training_step

    def construct_with_stamps(self: Any, *arguments: Any, **options: Any) -> None:
        construct(self, *arguments, **options)
        self.add_callback(Stamps())

    def train_on_noted(self: Any, model: Any, inputs: Mapping[str, Any], *further: Any) -> Any:
        targets = int((inputs["labels"][:, 1:] != -100).sum())
        noted["batches"].append([len(noted["steps"]), lengths(inputs), targets])
        return train_on(self, model, inputs, *further)

    trainer.__init__, trainer.training_step = construct_with_stamps, train_on_noted


if __name__ == "__main__":
    run_patched(stamp)
