"""Saving at the end of a step when a cluster wants its machine back."""

import signal
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lamina.runtime import distributed


class SaveAndRequeue(TrainerCallback):
    """Saves a checkpoint once the signal has come, and then lets submitit requeue the job.

    submitit's own handler would requeue and exit in the middle of a step. It is put back when
    training ends, and where there is none this does nothing.
    """

    def __init__(self) -> None:
        """Change nothing yet."""
        self._requeue: Callable[[int, Any], Any] | None = None
        self._asked = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Take the signal over from submitit."""
        before = signal.getsignal(distributed.REQUEUE_SIGNAL)
        if callable(before):
            self._requeue = before
            signal.signal(distributed.REQUEUE_SIGNAL, self._note)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask for a checkpoint if the signal has come, to one process or to all."""
        if self._requeue is not None:
            # It reaches them at different moments, and they have to save at the same step.
            self._asked = distributed.any_of(self._asked)
        control.should_save = control.should_save or self._asked

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Hand over to submitit, which requeues the job and ends this process."""
        if self._asked and self._requeue is not None:
            self._requeue(distributed.REQUEUE_SIGNAL, None)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Give the signal back: what follows the training begins anew in the requeued job."""
        if self._requeue is not None:
            signal.signal(distributed.REQUEUE_SIGNAL, self._requeue)
            if self._asked:
                self._requeue(distributed.REQUEUE_SIGNAL, None)

    def _note(self, signum: int, frame: Any) -> None:
        self._asked = True
