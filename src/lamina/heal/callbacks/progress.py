"""The callbacks that `lamina.heal.callbacks.settings` builds."""

import math
from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback, TrainerState
from typing_extensions import override

from lamina.errors import TrainingError
from lamina.heal.callbacks.clock import SECONDS
from lamina.runtime.console import stage
from lamina.units import format_bytes, format_time_split

ESSENTIAL = ("loss", "speed")
"""Figures that the line always has room for."""

HISTORY_FIELDS = ("step", "tokens", "loss", "learning_rate", "eval_loss")
"""Fields of an entry in result.json's history; null if the step did not log them."""


class ProgressLine(TrainerCallback):
    """A console line with step, loss, speed and time left; if there is room, with more."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.figures: dict[str, str] = {}
        self.shown = ExitStack()

    @override
    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        began = stage(self.description, state.max_steps, "steps", first=state.global_step)
        self.stage = self.shown.enter_context(began)

    @override
    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self.stage.done = state.global_step

    @override
    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "eval_loss" in logs:
            self.figures["eval_loss"] = f"eval_loss {logs['eval_loss']:.4f}"
        if "loss" in logs:
            self.figures["loss"] = f"loss {logs['loss']:.4f}"
            self.figures["lr"] = f"lr {logs.get('learning_rate', 0.0):.1e}"
        if "tokens_per_second" in logs:
            self.figures["speed"] = f"{logs['tokens_per_second']:,.0f} tokens/s"
        if "mfu" in logs:
            self.figures["mfu"] = f"mfu {logs['mfu']:.1%}"
        if "peak_memory_bytes" in logs:
            seconds = {name.removeprefix(SECONDS): logs[name] for name in logs if SECONDS in name}
            self.figures["mem"] = f"mem {format_bytes(int(logs['peak_memory_bytes']))}"
            self.figures["time"] = format_time_split(seconds)
        self.stage.notes = [self.figures[key] for key in ESSENTIAL if key in self.figures]
        self.stage.extras = [text for key, text in self.figures.items() if key not in ESSENTIAL]

    @override
    def on_train_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.stage.say()
        self.close()

    def close(self) -> None:
        """End the line, even on an error, so that the next output has a line of its own."""
        self.shown.close()


class StopOnNonFiniteLoss(TrainerCallback):
    """Raises at the first loss that is NaN or infinite."""

    @override
    def on_log(self, args: Any, state: Any, *_: Any, logs: dict[str, float], **__: Any) -> None:
        for name in ("loss", "eval_loss"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise TrainingError(
                    f"{name} is {logs[name]} at step {state.global_step}: "
                    f"lower learning_rate={args.learning_rate:g}, or set bf16=false; "
                    "earlier checkpoints are intact"
                )


class KeepHistory(TrainerCallback):
    """Fills a list with one entry per step that logs a loss."""

    def __init__(self, history: list[dict[str, Any]]) -> None:
        self.history = history

    @override
    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        # A checkpoint has the history up to its step.
        self.history.clear()
        for logs in state.log_history:
            self._add(logs)

    @override
    def on_log(self, args: Any, state: Any, *_: Any, logs: dict[str, float], **__: Any) -> None:
        seen = {"num_input_tokens_seen": state.num_input_tokens_seen, "step": state.global_step}
        self._add({**logs, **seen})

    def _add(self, logs: dict[str, Any]) -> None:
        if not {"loss", "eval_loss"} & logs.keys():
            return
        if not self.history or self.history[-1]["step"] != logs["step"]:
            self.history.append(dict.fromkeys(HISTORY_FIELDS))
        named = {"tokens": logs.get("num_input_tokens_seen"), **logs}
        self.history[-1].update(
            {key: named[key] for key in HISTORY_FIELDS if named.get(key) is not None}
        )
