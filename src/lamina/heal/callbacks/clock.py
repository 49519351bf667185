"""Where the time of a training goes, and how fast its steady steps are."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lamina.data.tokenization import IGNORED
from lamina.measure.speed import Flops
from lamina.runtime import distributed
from lamina.runtime.device import peak_memory_bytes

PHASES = ("data", "forward_backward", "optimizer", "evaluation", "save", "other")
"""What a training's wall-clock time is split into; other is logging and callbacks."""

SECONDS = "seconds/"
"""What the names of the phases begin with in the logs."""

STEP = ("data", "forward_backward", "optimizer")
"""The phases of an optimizer step."""


def warm_up_steps(steps: int) -> int:
    """Return how many of the first steps do not count as steady: a tenth, from 2 to 10.

    Kernels are compiled and memory is allocated in them. One step always counts.

    Args:
        steps: That this process is to take; a resumed training takes fewer than the whole.
    """
    return min(max(2, min(10, -(-steps // 10))), max(0, steps - 1))


@dataclass(frozen=True)
class Reading:
    """How fast the steady steps were, over all processes."""

    seconds: float
    """Wall-clock seconds, without evaluations and saves."""
    tokens: float
    """That were read, padding left out."""
    flops: float
    """Floating-point operations, as `lamina.measure.speed` counts them."""

    @property
    def tokens_per_second(self) -> float:
        """Tokens that were read in a second."""
        return self.tokens / self.seconds

    @property
    def flops_per_second(self) -> float:
        """Operations in a second, of all processes together."""
        return self.flops / self.seconds

    def mfu(self, peak: float) -> float:
        """Return the share of the processes' peak, in operations a second of each, that is used."""
        return self.flops_per_second / (peak * distributed.count())


@dataclass(frozen=True)
class _Mark:
    """The end of a step: what lies behind it."""

    at: float
    left_out: float
    """Seconds of evaluations and saves so far."""
    tokens: int
    counted: torch.Tensor
    """Targets, then pairs by window, of this process."""


class StepClock(TrainerCallback):
    """Splits a training's time into phases, and counts what its steps read.

    Wall-clock time of this process. On an accelerator a step's end waits, once, for what is still
    being computed there; the end of a backward pass needs no wait, since transformers counts its
    tokens there. So each phase has the time of its own work.
    """

    def __init__(self, flops: Flops) -> None:
        """Take what the model's operations are; `on_train_begin` starts the clock."""
        self.flops = flops
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._phase: str | None = None
        self._since = 0.0
        self._counted = torch.zeros(1 + len(flops.per_pair), dtype=torch.int64)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Count the body's time to a phase, and go on with the one before."""
        before = self._phase
        self.switch(phase)
        try:
            yield
        finally:
            self.switch(before)

    def switch(self, phase: str | None) -> None:
        """Count the time until now to the phase that ends; outside of a training do nothing."""
        if self._phase is None:
            return
        now = time.monotonic()
        self.seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def count(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """Count what attention and the output head have to do for one batch.

        Args:
            inputs: As the model gets them: labels and position_ids or attention_mask, each
                (batch, tokens).
        """
        seen = _seen(inputs)
        windows = [seen if w is None else seen.clamp(max=w) for w in self.flops.per_pair]
        targets = (inputs["labels"][:, 1:] != IGNORED).sum()
        self._counted = self._counted + torch.stack([targets, *(w.sum() for w in windows)]).cpu()

    def reading(self) -> Reading | None:
        """Return the speed so far; all processes have to call it.

        Returns:
            None before the end of a steady step, and where no tokens are counted.
        """
        first, last = self._steady, self._last
        if first is None or last.tokens == first.tokens:
            return None
        targets, *pairs = distributed.summed((last.counted - first.counted).tolist())
        tokens = last.tokens - first.tokens
        by_window = dict(zip(self.flops.per_pair, pairs, strict=True))
        return Reading(
            seconds=(last.at - first.at) - (last.left_out - first.left_out),
            tokens=tokens,
            flops=self.flops.of(tokens, targets, by_window),
        )

    def spent(self) -> dict[str, float]:
        """Return each phase's seconds and the most memory in use so far, as they are logged."""
        seconds = {f"{SECONDS}{phase}": taken for phase, taken in self.seconds.items()}
        return {**seconds, "peak_memory_bytes": peak_memory_bytes()}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start; a resumed training counts what it does itself."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._phase, self._since = "other", time.monotonic()
        self._counted = torch.zeros_like(self._counted)
        self._steady_from = state.global_step + warm_up_steps(state.max_steps - state.global_step)
        self._steady: _Mark | None = None
        self._mark(state)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Go on to the optimizer, where gradients were not clipped before."""
        self.switch("optimizer")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """End the step, once the accelerator is done with it."""
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.switch("other")
        self._mark(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Stop."""
        self.switch(None)

    def _mark(self, state: TrainerState) -> None:
        left_out = self.seconds["evaluation"] + self.seconds["save"]
        tokens = state.num_input_tokens_seen
        self._last = _Mark(self._since, left_out, tokens, self._counted)
        if state.global_step == self._steady_from:
            self._steady = self._last


def _seen(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return how many tokens each token may look at, itself included; 0 for padding.

    Position ids begin anew in each document of a pack, whose mask keeps them apart.

    Returns:
        (batch, tokens)
    """
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    if positions is not None:
        return (positions + 1) * (1 if mask is None else mask)
    if mask is None:
        mask = torch.ones_like(inputs["input_ids"])
    return mask.cumsum(dim=1) * mask
