"""When a checkpoint is saved, and which one is the best."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


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
