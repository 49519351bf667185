"""When a checkpoint is saved, which one is the best, and what a preempted job does."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lamina.runtime import distributed


def saved_best(state: TrainerState, folder: Path, new: Path) -> str | None:
    """Return the best checkpoint's path, if it was saved.

    Args:
        state: Of the training.
        folder: Of its checkpoints.
        new: One that is being saved.
    """
    if not state.best_global_step:
        return None
    best = folder / f"checkpoint-{state.best_global_step}"
    return str(best) if best == new or best.is_dir() else None


class Checkpointing(TrainerCallback):
    """Evaluates and saves at the last step, and saves whenever eval_loss is the lowest so far.

    Without it a run shorter than eval_steps is never evaluated, and the best evaluation may fall
    on a step that is not saved.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Find the best checkpoint where it is now: its path is that of the day it was saved."""
        folder = Path(args.output_dir)
        state.best_model_checkpoint = saved_best(state, folder, folder)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """Ask for an evaluation and a checkpoint at the last step."""
        if state.global_step >= state.max_steps and args.eval_strategy != "no":
            control.should_evaluate = True
            control.should_save = True

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **_: Any,
    ) -> None:
        """Ask for a checkpoint if this evaluation is the best so far."""
        loss = metrics.get("eval_loss")
        best = state.best_metric
        if args.load_best_model_at_end and loss is not None and (best is None or loss < best):
            control.should_save = True


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
