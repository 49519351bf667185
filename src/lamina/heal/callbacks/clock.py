"""How a training spends its time, and how fast its steps are after warm-up."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback, TrainerState
from typing_extensions import override

from lamina.data.tokenization import IGNORED
from lamina.measure.speed import Flops
from lamina.runtime import distributed
from lamina.runtime.device import peak_memory_bytes

PHASES = ("data", "forward_backward", "optimizer", "evaluation", "save", "other")
"""Phases of a training's wall-clock time; other is logging and callbacks."""

SECONDS = "seconds/"
"""Prefix of the phases' names in the logs."""

TRAINED = "trained_tokens"
"""Key in the logs and in result.json of the trained tokens so far."""

SPENT = "spent"
"""Key in a checkpoint's state of the trained tokens, and of each phase's seconds, so far."""

STEP = ("data", "forward_backward", "optimizer")
"""The phases of an optimizer step."""

SPEED = ("tokens_per_second", "flops_per_second", "mfu")
"""Metrics of speed, logged and recorded; mfu only if the accelerator's peak is known."""


def warm_up_steps(steps: int) -> int:
    """Return how many first steps to exclude from the speed: a tenth, from 2 to 10.

    They compile kernels and allocate memory. The last step always counts. `steps` are those this
    process takes: a resumed training takes fewer than its total.
    """
    return min(max(2, min(10, -(-steps // 10))), max(0, steps - 1))


@dataclass(frozen=True)
class Reading:
    """The work and time of the steps after warm-up, over all processes."""

    seconds: float
    """Wall-clock seconds, evaluations and saves excluded."""
    tokens: float
    """Tokens read, padding excluded."""
    flops: float
    """Floating-point operations, as counted by `lamina.measure.speed`."""

    def speed(self, peak: float | None) -> dict[str, float | None]:
        """Return each metric of `SPEED`, given one process's peak in operations per second."""
        per_second = self.flops / self.seconds
        return {
            "tokens_per_second": self.tokens / self.seconds,
            "flops_per_second": per_second,
            "mfu": None if peak is None else per_second / (peak * distributed.world_size()),
        }


@dataclass(frozen=True)
class _Mark:
    """Counts at the end of a step."""

    at: float
    excluded: float
    """Seconds of evaluations and saves so far."""
    tokens: int
    counted: torch.Tensor
    """Trained tokens, then pairs of tokens by window, of this process."""


class StepClock(TrainerCallback):
    """Splits this process's wall-clock time into phases and counts the tokens of its steps.

    The end of a step waits for the accelerator, so that each phase has the time of its own work.
    The end of a backward pass need not: transformers counts tokens there, which synchronizes.
    """

    def __init__(self, flops: Flops, *further: str) -> None:
        """Count the work of a model; `further` phases are parts of a step."""
        self.flops = flops
        self.step = (*STEP, *further)
        self.seconds = dict.fromkeys((*PHASES, *further), 0.0)
        self._phase: str | None = None
        self._since = 0.0
        self._counted = torch.zeros(1 + len(flops.per_pair), dtype=torch.int64)
        self._trained_before: int | None = 0

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Count the body's time as a phase's, then return to the previous phase."""
        before = self._phase
        self.switch(phase)
        try:
            yield
        finally:
            self.switch(before)

    def switch(self, phase: str | None) -> None:
        """End the current phase and start another; do nothing outside a training."""
        if self._phase is None:
            return
        now = time.monotonic()
        self.seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def count(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """Count the work of attention and the output head for one batch, (batch, tokens) each."""
        seen = _seen(inputs)
        windows = [seen if w is None else seen.clamp(max=w) for w in self.flops.per_pair]
        targets = (inputs["labels"][:, 1:] != IGNORED).sum()
        self._counted = self._counted + torch.stack([targets, *(w.sum() for w in windows)]).cpu()

    def reading(self) -> Reading | None:
        """Return the work and time since warm-up, if there is any; all processes must call it."""
        first, last = self._steady, self._last
        if first is None or last.tokens == first.tokens:
            return None
        targets, *pairs = distributed.summed((last.counted - first.counted).tolist())
        tokens = last.tokens - first.tokens
        by_window = dict(zip(self.flops.per_pair, pairs, strict=True))
        return Reading(
            seconds=(last.at - first.at) - (last.excluded - first.excluded),
            tokens=tokens,
            flops=self.flops.of(tokens, targets, by_window),
        )

    def trained_tokens(self) -> int | None:
        """Return the tokens with a label so far, those before a resume included.

        None if the checkpoint does not say; all processes must call it.
        """
        if self._trained_before is None:
            return None
        return self._trained_before + int(distributed.summed([int(self._counted[0])])[0])

    def train_seconds(self) -> float | None:
        """Return the seconds of the steps so far; None if the checkpoint does not say."""
        known = self._trained_before is not None
        return sum(self.seconds[phase] for phase in self.step) if known else None

    def state(self) -> dict[str, float | None]:
        """Return what a resumed training counts on from; all processes must call it."""
        return {**self.seconds, TRAINED: self.trained_tokens()}

    def spent(self) -> dict[str, float]:
        """Return each phase's seconds and the peak memory so far, by their names in the logs."""
        seconds = {f"{SECONDS}{phase}": taken for phase, taken in self.seconds.items()}
        return {**seconds, "peak_memory_bytes": peak_memory_bytes()}

    @override
    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        before = state.stateful_callbacks.get(SPENT) if state.global_step else {TRAINED: 0}
        is_known = isinstance(before, dict) and type(before.get(TRAINED)) is int
        self._trained_before = before[TRAINED] if is_known else None
        self.seconds = {
            phase: before.get(phase, 0.0) if is_known else 0.0 for phase in self.seconds
        }
        self._phase, self._since = "other", time.monotonic()
        self._counted = torch.zeros_like(self._counted)
        self._steady_from = state.global_step + warm_up_steps(state.max_steps - state.global_step)
        self._steady: _Mark | None = None
        self._mark(state)

    @override
    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.switch("optimizer")  # already done if gradients were clipped

    @override
    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.switch("other")
        self._mark(state)

    @override
    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.switch(None)

    def _mark(self, state: TrainerState) -> None:
        excluded = self.seconds["evaluation"] + self.seconds["save"]
        tokens = state.num_input_tokens_seen
        self._last = _Mark(self._since, excluded, tokens, self._counted)
        if state.global_step == self._steady_from:
            self._steady = self._last


def _seen(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return how many tokens each token attends to, itself included, (batch, tokens).

    Position ids restart with each document of a pack, whose mask keeps them apart. Padding is 0.
    """
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    if positions is not None:
        return (positions + 1) * (1 if mask is None else mask)
    if mask is None:
        mask = torch.ones_like(inputs["input_ids"])
    return mask.cumsum(dim=1) * mask
