"""Loggers: TensorBoard and Weights & Biases."""

import hashlib
import logging
import os
import socket
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from lamina.limits import one_of
from lamina.runtime.attributes import attributes
from lamina.runtime.files import disk_errors
from lamina.runtime.paths import short_path

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from lamina.heal.callbacks.settings import CallbackSettings, Context

logger = logging.getLogger(__name__)

COMPARED = ("eval_loss", "perplexity", "tokens_per_second")
"""Final metrics beside the hyperparameters of a run."""

WANDB_HOST = "https://api.wandb.ai"


@contextmanager
def open_observers(
    context: "Context",
    loggers: "Iterable[LoggerSettings | None]",
    callbacks: "Iterable[CallbackSettings | None]",
) -> Iterator[list[Any]]:
    """Open the loggers and build the callbacks; close all of them afterwards, even on an error.

    A logger or callback that is turned off has None for its settings.
    """
    with ExitStack() as stack:
        writers = [stack.enter_context(logger.writer(context)) for logger in loggers if logger]
        built = [callback.build(context) for callback in callbacks if callback]
        for callback in built:
            stack.callback(getattr(callback, "close", lambda: None))
        yield writers + built


@dataclass(frozen=True, kw_only=True)
class TensorBoard:
    """Event files in {logging_dir}/{model_type}/{name}."""

    @contextmanager
    def writer(self, context: "Context") -> Iterator["TrainerCallback"]:
        """Open the files for a run; leaving the context closes them, even on an error."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams
        from transformers.integrations import TensorBoardCallback

        # Steps after the checkpoint are purged, so that a resumed run logs none twice.
        purge = None if context.resume_step is None else context.resume_step + 1
        # What a thread cannot write, TensorBoard 2.21 raises again at the next entry or the close.
        before = threading.excepthook
        with (
            disk_errors(context.logging_dir, "logging_dir"),
            attributes(
                threading, excepthook=lambda of: isinstance(of.exc_value, OSError) or before(of)
            ),
            SummaryWriter(str(context.logging_dir), purge_step=purge) as writer,
        ):
            for tag, value in context.figures_before().items():
                writer.add_scalar(tag, value, 0)
            yield TensorBoardCallback(writer)
            final = {f"final/{name}": context.metrics[name] for name in COMPARED}
            final = {tag: value for tag, value in final.items() if value is not None}
            for tag, value in final.items():  # reopens the file that the callback has closed
                writer.add_scalar(tag, value)
            for tag, value in context.task_figures("final"):
                writer.add_scalar(tag, value, context.last_step)
            entries = hparams(context.hyperparameters, final)
            _list_first(context.changed, entries[0])
            # add_hparams would open a writer, and so a run, of its own.
            for entry in entries:
                writer.file_writer.add_summary(entry)


def _list_first(changed: Collection[str], experiment: Any) -> None:
    """Have the HPARAMS tab list these settings first: it shows only five at first."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    data = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(data.content)
    for info in content.experiment.hparam_infos:
        info.differs = info.name in changed
    data.content = content.SerializeToString()


@dataclass(frozen=True, kw_only=True)
class WandB:
    """A Weights & Biases run; the key comes from the environment and is never written."""

    project: str
    name: str
    group: str
    mode: Annotated[str, one_of("auto", "online", "offline")]

    @contextmanager
    def writer(self, context: "Context") -> Iterator["TrainerCallback"]:
        """Open the run; leaving the context closes it, even on an error."""
        import wandb

        from lamina.heal.callbacks.wandb import WandbEntries

        context.run_dir.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=self.project,
            name=context.run_name if self.name == "auto" else self.name,
            group=self._group(context),
            # The folder identifies the run, so that a resumed job continues it.
            id=hashlib.sha256(str(context.run_dir).encode()).hexdigest()[:16],
            resume="allow",
            mode=self._mode(),
            dir=str(context.run_dir),
            tags=context.tags,
            config=context.config,
            settings=wandb.Settings(silent=True, **self._server()),
        )
        if run.offline:
            place = short_path(Path(run.dir).parent)
            logger.info("Weights & Biases is offline; to upload the run: wandb sync %s", place)
        entries = WandbEntries()
        try:
            if before := context.figures_before():
                with entries.while_connected():
                    run.log({**before, "train/global_step": 0})
            yield entries
            with entries.while_connected():
                if after := dict(context.task_figures("final")):
                    run.log({**after, "train/global_step": context.last_step})
                run.summary.update({k: v for k, v in context.metrics.items() if v is not None})
        # Whatever ended the run, a sweep's next job must not log into it.
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

    def _server(self) -> dict[str, str]:
        """Return the server for the environment's key, whatever a wandb/settings file names."""
        has_key = bool(os.environ.get("WANDB_API_KEY"))
        return {"base_url": os.environ.get("WANDB_BASE_URL", WANDB_HOST)} if has_key else {}

    def _mode(self) -> Literal["online", "offline"]:
        has_key = bool(os.environ.get("WANDB_API_KEY"))
        is_online = self.mode == "online" or (self.mode == "auto" and has_key and _reachable())
        return "online" if is_online else "offline"


LoggerSettings = TensorBoard | WandB


def _reachable() -> bool:
    """Whether the Weights & Biases server accepts a connection within three seconds."""
    address = urlsplit(os.environ.get("WANDB_BASE_URL", WANDB_HOST))
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=3):
            return True
    except OSError:
        return False
