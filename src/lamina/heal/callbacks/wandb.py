"""Logging to Weights & Biases while its process lives."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.integrations import WandbCallback
from typing_extensions import override

logger = logging.getLogger(__name__)


class WandbEntries(WandbCallback):
    """Logs as transformers does; if that fails, training continues without logging.

    SLURM ends all processes of a preempted job, that of Weights & Biases included, before this one
    has saved. What wandb 0.31 then raises differs from call to call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_connected = True

    @override
    def on_train_begin(self, *arguments: Any, **options: Any) -> None:
        with self.while_connected():
            super().on_train_begin(*arguments, **options)

    @override
    def on_log(self, *arguments: Any, **options: Any) -> None:
        if self.is_connected:
            with self.while_connected():
                super().on_log(*arguments, **options)

    @contextmanager
    def while_connected(self) -> Iterator[None]:
        """Warn once when the connection is lost."""
        try:
            yield
        # wandb raises what its network library does; no failure to log may end a training.
        except Exception as error:
            if self.is_connected:
                reason = f"{type(error).__name__}: {error}"
                logger.warning("Weights & Biases: %s; later steps are not logged there", reason)
            self.is_connected = False
