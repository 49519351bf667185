"""Loggers: TensorBoard and Weights & Biases, one run of theirs for each run of ours."""

import hashlib
import os
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol
from urllib.parse import urlsplit

from lamina.limits import one_of
from lamina.runtime.files import disk_errors

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from transformers import TrainerCallback

    from lamina.heal.callbacks.settings import CallbackSettings, Context

WANDB_HOST = "https://api.wandb.ai"


class LoggerSettings(Protocol):
    """Settings of one logger."""

    def writer(self, context: "Context") -> "AbstractContextManager[TrainerCallback]":
        """Open the logger for a run; leaving the context closes it, whatever happened."""
        ...


@contextmanager
def watchers(
    context: "Context",
    loggers: "Iterable[LoggerSettings | None]",
    callbacks: "Iterable[CallbackSettings | None]",
) -> Iterator[list[Any]]:
    """Open the loggers and build the callbacks; all are closed whatever happens.

    Args:
        context: Of the run.
        loggers: Settings; None stands for one that was turned off.
        callbacks: Likewise.
    """
    with ExitStack() as stack:
        writers = [stack.enter_context(logger.writer(context)) for logger in loggers if logger]
        built = [callback.build(context) for callback in callbacks if callback]
        for callback in built:
            stack.callback(getattr(callback, "close", lambda: None))
        yield writers + built


@dataclass(frozen=True, kw_only=True)
class TensorBoard:
    """Event files in {logging_dir}/{model_type}."""

    @contextmanager
    def writer(self, context: "Context") -> Iterator["TrainerCallback"]:
        """Open a writer; a resumed run's later steps are purged, so that none stands twice."""
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations import TensorBoardCallback

        purge = None if context.resume_step is None else context.resume_step + 1
        with (
            disk_errors(context.logging_dir, "logging_dir"),
            _silent_threads(),
            SummaryWriter(str(context.logging_dir), purge_step=purge) as writer,
        ):
            yield TensorBoardCallback(writer)


@dataclass(frozen=True, kw_only=True)
class WandB:
    """One Weights & Biases run; the key comes from the environment and is never written."""

    project: str
    """Project of the run."""

    name: str
    """Name of the run; auto: variant, kept layers and adapter."""

    group: str
    """Group of the run; auto: the sweep's folder, or none."""

    mode: Annotated[str, one_of("auto", "online", "offline")]
    """online, offline, or auto: online with a key and a network."""

    @contextmanager
    def writer(self, context: "Context") -> Iterator["TrainerCallback"]:
        """Start a run and finish it in any case: jobs of a sweep may share this process."""
        import wandb

        from lamina.heal.callbacks.wandb import WandbEntries

        context.run_dir.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=self.project,
            name=context.run_name if self.name == "auto" else self.name,
            group=self._group(context),
            # The same folder is the same run: a resumed job goes on under its id.
            id=hashlib.sha256(str(context.run_dir).encode()).hexdigest()[:16],
            resume="allow",
            mode=self._mode(),
            dir=str(context.run_dir),
            config=context.config,
            settings=wandb.Settings(silent=True),
        )
        entries = WandbEntries()
        try:
            yield entries
            with entries.while_connected():
                run.summary.update({k: v for k, v in context.metrics.items() if v is not None})
        # Whatever ended the run, a sweep's next job must not log into it; the error goes on.
        except BaseException:
            with entries.while_connected():
                run.finish(exit_code=1)
            raise
        with entries.while_connected():
            run.finish()

    def _group(self, context: "Context") -> str | None:
        if self.group != "auto":
            return self.group
        sweep = context.run_dir.parent
        in_sweep = (sweep / "multirun.yaml").is_file()
        return "/".join(sweep.parts[-2:]) if in_sweep else None

    def _mode(self) -> Literal["online", "offline"]:
        if self.mode == "auto":
            return "online" if os.environ.get("WANDB_API_KEY") and _reachable() else "offline"
        return "online" if self.mode == "online" else "offline"


@contextmanager
def _silent_threads() -> Iterator[None]:
    """Let a thread that cannot write die without a traceback: TensorBoard raises it again itself.

    That is at the next entry, or when the writer is closed (tensorboard 2.21).
    """
    before = threading.excepthook

    def tell(arguments: threading.ExceptHookArgs) -> None:
        if not isinstance(arguments.exc_value, OSError):
            before(arguments)

    threading.excepthook = tell
    try:
        yield
    finally:
        threading.excepthook = before


def _reachable() -> bool:
    """Whether the Weights & Biases server accepts a connection within three seconds."""
    address = urlsplit(os.environ.get("WANDB_BASE_URL", WANDB_HOST))
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=3):
            return True
    except OSError:
        return False
