"""Settings of the callbacks, and what these may use of a run."""

import inspect
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from typing_extensions import override

from lamina.errors import naming
from lamina.limits import AT_LEAST_ONE, NOT_NEGATIVE

if TYPE_CHECKING:
    from transformers import TrainerCallback


@dataclass(frozen=True, kw_only=True)
class Context:
    """What callbacks and loggers may use of a run."""

    run_dir: Path
    logging_dir: Path
    """Folder of this run's logs."""
    run_name: str
    """What tells the run from others, for display."""
    tags: tuple[str, ...]
    """Variant and adapter."""
    hyperparameters: dict[str, Any]
    """The settings that runs are compared by."""
    changed: Collection[str]
    """Names of those in which a sweep's jobs differ."""
    config: dict[str, Any]
    """The run's settings."""
    resume_step: int | None
    """Optimizer step of the checkpoint to resume from; None for a fresh start."""
    history: list[dict[str, Any]]
    """result.json's history, which a callback fills."""
    metrics: dict[str, Any]
    """result.json's metrics, complete at the end of the run."""
    tasks: dict[str, dict[str, dict[str, float]]]
    """Figures of each role's tasks, complete at the end of the run, too."""

    def figures_before(self) -> dict[str, float]:
        """Return the losses and tasks' figures before training; none when a run resumes."""
        if self.resume_step is not None:
            return {}
        names = ("baseline_eval_loss", "reduced_eval_loss")
        known = {name: self.metrics[name] for name in names if self.metrics[name] is not None}
        losses = {f"eval/{name.replace('_eval', '')}": loss for name, loss in known.items()}
        untouched = {f"{tag}_original": value for tag, value in self.task_figures("original")}
        return {**losses, **untouched, **dict(self.task_figures("reduced"))}

    @property
    def last_step(self) -> int | None:
        """The last optimizer step, if the history is kept."""
        return self.history[-1]["step"] if self.history else None

    def task_figures(self, role: str) -> Iterator[tuple[str, float]]:
        """Yield a model's figures with their tags, such as eval_tasks/arc_easy/acc."""
        for task, figures in self.tasks.get(role, {}).items():
            yield from ((f"eval_tasks/{task}/{name}", value) for name, value in figures.items())


class CallbackSettings(Protocol):
    """Settings of one callback."""

    def build(self, context: Context) -> "TrainerCallback":
        """Build the callback for a run."""


@dataclass(frozen=True, kw_only=True)
class Progress(CallbackSettings):
    """Shows the training's progress in one line."""

    @override
    def build(self, context: Context) -> "TrainerCallback":
        from lamina.heal.callbacks.progress import ProgressLine

        return ProgressLine(context.run_name)


@dataclass(frozen=True, kw_only=True)
class FiniteLoss(CallbackSettings):
    """Stops the run at a loss that is NaN or infinite."""

    @override
    def build(self, context: Context) -> "TrainerCallback":
        from lamina.heal.callbacks.progress import StopOnNonFiniteLoss

        return StopOnNonFiniteLoss()


@dataclass(frozen=True, kw_only=True)
class History(CallbackSettings):
    """Fills result.json's history; a resumed run keeps it up to the checkpoint's step."""

    @override
    def build(self, context: Context) -> "TrainerCallback":
        from lamina.heal.callbacks.progress import KeepHistory

        return KeepHistory(context.history)


@dataclass(frozen=True, kw_only=True)
class EarlyStopping(CallbackSettings):
    """Stops when eval_loss no longer falls."""

    patience: Annotated[int, AT_LEAST_ONE]
    threshold: Annotated[float, NOT_NEGATIVE]

    @override
    def build(self, context: Context) -> "TrainerCallback":
        from lamina.heal.callbacks.stopping import EarlyStop

        return EarlyStop(self.patience, self.threshold)


@dataclass(frozen=True, kw_only=True)
class UserCallback(CallbackSettings):
    """A user's own callback, which the command line or LAMINA_ALLOW names."""

    target: str
    arguments: dict[str, Any]

    def load(self) -> "type[TrainerCallback]":
        """Import the class; raises ConfigError if it is no TrainerCallback of these arguments."""
        from transformers import TrainerCallback

        module, _, name = self.target.rpartition(".")
        with naming(f"callbacks: _target_={self.target}", Exception):  # it may raise anything
            found = getattr(import_module(module), name)
            if not (isinstance(found, type) and issubclass(found, TrainerCallback)):
                raise TypeError("it does not derive from transformers.TrainerCallback")
            inspect.signature(found).bind(**self.arguments)
            return found

    @override
    def build(self, context: Context) -> "TrainerCallback":
        return self.load()(**self.arguments)
