"""Runs `python -m train` as it is, and stamps its steps with a clock of the benchmark's own.

    python benchmarks/stamped.py STAMPS.json experiment=quickstart ...

STAMPS.json then holds, in seconds of time.monotonic,

    begin, end    of the training
    steps         the end of each optimizer step
    left_out      [from, to]: from a step's end to the end of the evaluation or save behind it
    batches       for each forward pass: its step, its documents' lengths, its trained tokens

The documents are read off the batches that the model gets: position ids begin anew in each, or
attention masks end where the padding begins.
"""

import json
import runpy
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from timed import PATCHED, PatchOnImport


def lengths(inputs: Mapping[str, Any]) -> list[int]:
    """Return the tokens of each document in a batch."""
    if "position_ids" not in inputs:
        return list(map(int, inputs["attention_mask"].sum(dim=1).tolist()))
    positions = inputs["position_ids"].flatten().tolist()
    starts = [index for index, position in enumerate(positions) if position == 0]
    return [b - a for a, b in zip(starts, [*starts[1:], len(positions)], strict=True)]


def stamp(trl_module: ModuleType, output: Path) -> None:
    """Make every SFTTrainer write its stamps to a file when its training ends."""
    from transformers import TrainerCallback

    noted: dict[str, Any] = {"steps": [], "left_out": [], "batches": []}

    class Stamps(TrainerCallback):
        """Notes when things end."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            noted["begin"] = time.monotonic()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            noted["steps"].append(time.monotonic())

        def on_evaluate(self, *_: Any, **__: Any) -> None:
            noted["left_out"].append([noted["steps"][-1], time.monotonic()])

        def on_save(self, *_: Any, **__: Any) -> None:
            self.on_evaluate()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            noted["end"] = time.monotonic()
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


def main() -> None:
    """Train."""
    output = Path(sys.argv[1])
    sys.argv = ["train", *sys.argv[2:]]
    sys.meta_path.insert(0, PatchOnImport(PATCHED, lambda module: stamp(module, output)))
    runpy.run_module("train", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
