"""Settings of callbacks; they build the ones of `lamina.heal.callbacks.progress`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from lamina.limits import AT_LEAST_ONE

if TYPE_CHECKING:
    from transformers import TrainerCallback


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a callback or a logger may want to know about its run."""

    run_dir: Path
    """The run folder."""

    logging_dir: Path
    """Folder of this variant's logs."""

    run_name: str
    """Variant, kept layers and adapter, for people."""

    config: dict[str, Any]
    """The run's settings, for a logger to show."""

    resume_step: int | None
    """Optimizer step that the training goes on from; None for a fresh start."""

    history: list[dict[str, Any]]
    """result.json's history, for a callback to fill."""

    metrics: dict[str, Any]
    """result.json's metrics; complete once the run has ended."""


class CallbackSettings(Protocol):
    """Settings of one callback."""

    def build(self, context: Context) -> "TrainerCallback":
        """Build the callback for a run."""
        ...


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A progress line: loss, learning rate, tokens a second and the time left."""

    def build(self, context: Context) -> "TrainerCallback":
        """Build the callback."""
        from lamina.heal.callbacks.progress import ProgressLine

        return ProgressLine(context.run_name)


@dataclass(frozen=True, kw_only=True)
class FiniteLoss:
    """Stops the run once a loss is not finite: nothing after that can be trusted."""

    def build(self, context: Context) -> "TrainerCallback":
        """Build the callback."""
        from lamina.heal.callbacks.progress import StopOnNonFiniteLoss

        return StopOnNonFiniteLoss()


@dataclass(frozen=True, kw_only=True)
class History:
    """Fills result.json's history; a resumed run's is cut at the step it goes on from."""

    def build(self, context: Context) -> "TrainerCallback":
        """Build the callback."""
        from lamina.heal.callbacks.progress import KeepHistory

        return KeepHistory(context.history)


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """Stops once eval_loss no longer falls."""

    patience: Annotated[int, AT_LEAST_ONE]
    """Evaluations without a better eval_loss."""

    threshold: float
    """How much lower eval_loss must be to count as better, in nats a token."""

    def build(self, context: Context) -> "TrainerCallback":
        """Build transformers' callback."""
        from transformers import EarlyStoppingCallback

        return EarlyStoppingCallback(self.patience, self.threshold)
