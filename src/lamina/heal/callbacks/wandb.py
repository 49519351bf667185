"""What goes to Weights & Biases, for as long as its process is there."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.integrations import WandbCallback

logger = logging.getLogger(__name__)


class WandbEntries(WandbCallback):
    """Logs as transformers does; where that fails the training goes on without.

    SLURM ends all processes of a job that it preempts, that of Weights & Biases among them, while
    this one has yet to save. What wandb 0.31 raises then differs from call to call.
    """

    def __init__(self) -> None:
        """Expect a connection."""
        super().__init__()
        self.is_connected = True

    def on_train_begin(self, *arguments: Any, **options: Any) -> None:
        """Describe the training."""
        with self.while_connected():
            super().on_train_begin(*arguments, **options)

    def on_log(self, *arguments: Any, **options: Any) -> None:
        """Log an entry."""
        if self.is_connected:
            with self.while_connected():
                super().on_log(*arguments, **options)

    @contextmanager
    def while_connected(self) -> Iterator[None]:
        """Say once that nothing arrives any more."""
        try:
            yield
        except Exception as error:
            if self.is_connected:
                said = f"{type(error).__name__}: {error}"
                logger.warning("Weights & Biases: %s; what follows is not logged there", said)
            self.is_connected = False
