"""When to save a checkpoint, which one is the best, and how signals end a training."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from typing_extensions import override

from lamina.runtime import distributed
from lamina.runtime.checkpoints import rotate
from lamina.runtime.interruption import FORWARDED, INTERRUPTING, handling, interrupt, raise_lost

NOTICE = b"\ninterrupted: saving at the end of this step; Ctrl-C again leaves at once\n"


def saved_best(state: TrainerState, folder: Path, new: Path) -> str | None:
    """Return the best checkpoint's path if it is in the folder, or is the `new` one being saved."""
    if not state.best_global_step:
        return None
    best = folder / f"checkpoint-{state.best_global_step}"
    return str(best) if best == new or best.is_dir() else None


class Checkpointing(TrainerCallback):
    """Evaluates and saves at the last step, and saves whenever the metric is the best so far.

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
        if not args.load_best_model_at_end:
            return
        name = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
        value, best = metrics.get(name), state.best_metric
        if value is not None and (
            best is None or (value > best if args.greater_is_better else value < best)
        ):
            control.should_save = True


class EndAfterStep(TrainerCallback):
    """Saves a checkpoint at the end of the step in which a signal arrives, then ends the run.

    A signal's own handler, which would end it in the middle of a step, is called after the save,
    and restored when training ends: submitit's requeues the job, ours interrupts the command. A
    second Ctrl-C does that at once. Signals without such a handler are left alone.
    """

    WATCHED = (distributed.REQUEUE_SIGNAL, FORWARDED, *INTERRUPTING)

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[int, Any], Any]] = {}
        self._received: int | None = None
        self._agreed: int | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Train in the body; give the signals back their handlers, whatever ended it."""
        raise_lost()
        requeue = distributed.REQUEUE_SIGNAL
        watched = [signum for signum in self.WATCHED if signal.getsignal(signum) is interrupt]
        watched += [requeue] if callable(signal.getsignal(requeue)) else []
        with handling(dict.fromkeys(watched, self._note)) as self._handlers:
            yield
        self._end(self._received)  # the next start does the steps after training

    @override
    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        # A signal reaches processes at different moments; they must save at the same step.
        counts = distributed.summed([signum == self._received for signum in self.WATCHED])
        received = (signum for signum, count in zip(self.WATCHED, counts, strict=True) if count)
        self._agreed = next(received, None)
        control.should_save = control.should_save or self._agreed is not None

    @override
    def on_evaluate(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        self.on_step_end(args, state, control)  # evaluating may take longer than a step

    @override
    def on_save(self, *_: Any, **__: Any) -> None:
        self._end(self._agreed)

    def _end(self, signum: int | None) -> None:
        if signum is not None:
            self._handlers.get(signum, interrupt)(signum, None)

    def _note(self, signum: int, frame: Any) -> None:
        if self._received is None:
            self._received = signum
            if distributed.is_first() and signum != distributed.REQUEUE_SIGNAL:
                with suppress(OSError):  # a handler must not print
                    os.write(2, NOTICE)
        elif signum == signal.SIGINT:
            interrupt(signum, frame)
