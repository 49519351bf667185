"""Early stopping that a resumed run continues."""

from typing import Any

from transformers import EarlyStoppingCallback, TrainerControl, TrainerState
from typing_extensions import override


class EarlyStop(EarlyStoppingCallback):
    """transformers' callback, which by itself forgets its count when a run resumes (5.17)."""

    @override
    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **options: Any
    ) -> None:
        super().on_train_begin(args, state, control, **options)
        saved = state.stateful_callbacks.get(type(self).__name__)
        if isinstance(saved, dict):
            self.early_stopping_patience_counter = int(
                saved["attributes"]["early_stopping_patience_counter"]
            )
