"""When to save a checkpoint, which one is the best, and what a preempted job does."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from typing_extensions import override

from lamina.runtime import distributed
from lamina.runtime.checkpoints import rotate


def saved_best(state: TrainerState, folder: Path, new: Path) -> str | None:
    """Return the best checkpoint's path if it is in the folder, or is the `new` one being saved."""
    if not state.best_global_step:
        return None
    best = folder / f"checkpoint-{state.best_global_step}"
    return str(best) if best == new or best.is_dir() else None


class Checkpointing(TrainerCallback):
    """Evaluates and saves at the last step, and saves whenever eval_loss is the lowest so far.

    Otherwise a run shorter than eval_steps is never evaluated, and the best step may not be saved.
    """

    @override
    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        # The folder may have moved since the path was stored.
        folder = Path(args.output_dir)
        state.best_model_checkpoint = saved_best(state, folder, folder)
        if args.should_save:  # an earlier start may have been killed after its last save
            rotate(folder, args.save_total_limit, state.best_model_checkpoint)

    @override
    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps and args.eval_strategy != "no":
            control.should_evaluate = True
            control.should_save = True

    @override
    def on_evaluate(
        self, args: Any, state: TrainerState, control: Any, metrics: dict[str, float], **_: Any
    ) -> None:
        loss, best = metrics.get("eval_loss"), state.best_metric
        if args.load_best_model_at_end and loss is not None and (best is None or loss < best):
            control.should_save = True


class SaveAndRequeue(TrainerCallback):
    """Saves a checkpoint at the end of the step in which SLURM's signal arrives, then requeues.

    submitit's handler would requeue and exit in the middle of a step. It is restored when training
    ends; without such a handler, this callback does nothing.
    """

    def __init__(self) -> None:
        self._requeue: Callable[[int, Any], Any] | None = None
        self._signalled = False

    @override
    def on_train_begin(self, *_: Any, **__: Any) -> None:
        before = signal.getsignal(distributed.REQUEUE_SIGNAL)
        if callable(before):
            self._requeue = before
            signal.signal(distributed.REQUEUE_SIGNAL, self._note)

    @override
    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        if self._requeue is not None:
            # The signal reaches processes at different moments; they must save at the same step.
            self._signalled = distributed.any_of(self._signalled)
        control.should_save = control.should_save or self._signalled

    @override
    def on_save(self, *_: Any, **__: Any) -> None:
        if self._signalled and self._requeue is not None:
            self._requeue(distributed.REQUEUE_SIGNAL, None)  # ends this process

    @override
    def on_train_end(self, *_: Any, **__: Any) -> None:
        # The requeued job does the steps after training.
        if self._requeue is not None:
            signal.signal(distributed.REQUEUE_SIGNAL, self._requeue)
            if self._signalled:
                self._requeue(distributed.REQUEUE_SIGNAL, None)

    def _note(self, signum: int, frame: Any) -> None:
        self._signalled = True
