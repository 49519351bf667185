"""trainer=none: the reduced model is measured and saved, but not trained."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from lamina.depth.variants import Variant
from lamina.heal.adapters import Adapter
from lamina.heal.sft import SFT
from lamina.measure.evaluate import TOLERANCES, perplexity, row_losses
from lamina.measure.protocol import ModelRef
from lamina.runtime.device import compute_device

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class NoTraining(SFT):
    """Settings of a run that trains nothing, whatever its arguments say."""

    name: ClassVar[str] = "none"
    trains: ClassVar[bool] = False

    @override
    def conflicts(
        self, model: Variant, adapter: Adapter, parallel: str, processes: int | str, kernels: str
    ) -> Iterator[str]:
        return iter(())


@dataclass(kw_only=True)
class Untrained:
    """Stands in a trainer's place: its training measures the model and changes nothing."""

    model: "PreTrainedModel"
    processing_class: "PreTrainedTokenizerBase"
    train_dataset: "Dataset"
    eval_dataset: "Dataset"
    max_tokens: int
    """Most tokens in one forward pass."""
    loss: float | None = None
    """In nats per token; None before `train`."""

    def train(self, resume_from_checkpoint: Path | str | None = None) -> None:
        """Measure the loss on the evaluation rows; processes share the work."""
        model = self.model.to(compute_device())
        rows = list(self.eval_dataset)
        self.loss = row_losses(model, rows, max_tokens=self.max_tokens).mean()

    def trainable_parameters(self) -> int:
        """Return 0: nothing is trained."""
        return 0

    def figures(self) -> dict[str, Any]:
        """Return the metrics, named as in result.json."""
        return {
            "eval_loss": self.loss,
            "perplexity": perplexity(self.loss),
            **dict.fromkeys(("train_tokens", "trained_tokens"), 0),
            "train_seconds": 0.0,
            "seconds": {},
        }

    def tolerance(self, final: ModelRef) -> float:
        """Return how far final/'s loss may be from the model's, as a share of 1 + it."""
        kinds = {final.dtype, str(self.model.dtype).removeprefix("torch.")}
        return TOLERANCES["same" if kinds == {"float32"} else "rounded"]

    def best_model(self) -> "PreTrainedModel":
        """Return the model."""
        return self.model
