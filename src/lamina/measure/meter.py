"""The measurements around a healing: before removal, after it, and of what was written."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from lamina.measure import ranks
from lamina.measure.device import on_device
from lamina.measure.evaluate import (
    SAMPLE_ROWS,
    Evaluation,
    RowLosses,
    answers,
    perplexity,
    row_losses,
)
from lamina.measure.results import ROWS_FILE, Record, write_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Meter:
    """Measures models on the same rows and prompts, and writes the figures into the record."""

    evaluation: Evaluation
    """What is asked for."""

    rows: Sequence[dict[str, Any]]
    """Tokenized evaluation rows."""

    prompts: Sequence[tuple[str, list[int]]]
    """Sample prompts: as people read them, and as token ids up to the answer."""

    max_tokens: int
    """Tokens at most in one forward pass."""

    record: Record
    """Where the figures go."""

    def loss(self, model: "PreTrainedModel") -> float:
        """Return a model's loss on the rows, in nats a token."""
        return self._losses(model).mean()

    def reduced(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", *, untouched: bool
    ) -> None:
        """Evaluate after removal, before healing.

        Args:
            model: Before it gets an adapter.
            tokenizer: Its own.
            untouched: Whether this is the larger model itself, of which no layer went: then its
                loss is the baseline too.
        """
        wanted = {"reduced_eval_loss": self.evaluation.reduced}
        wanted["baseline_eval_loss"] = self.evaluation.baseline and untouched
        if any(wanted.values()):
            loss = self.loss(model)
            self.record.measured(**{name: loss for name, asked in wanted.items() if asked})
        answered = zip(self.prompts, self._answers(model, tokenizer), strict=True)
        self.record.update(
            num_parameters=model.num_parameters(),
            samples=[{"prompt": p, "before": text, "after": None} for (p, _), text in answered],
        )

    def final(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        """Evaluate final/ as it was read back, not the object that was trained.

        eval.jsonl then has its loss on each row, in nats a token.
        """
        losses = self._losses(model)
        self.record.measured(
            eval_loss=losses.mean(),
            perplexity=perplexity(losses.mean()),
            eval_sample_loss=losses.mean(SAMPLE_ROWS),
        )
        pairs = zip(self.rows, losses.row_means(), strict=True)
        sample_rows = [{**row, "loss": loss} for row, loss in islice(pairs, SAMPLE_ROWS)]
        if ranks.is_first():
            write_rows(self.record.path.with_name(ROWS_FILE), sample_rows)
        after = self._answers(model, tokenizer)
        for sample, text in zip(self.record.content["samples"], after, strict=True):
            sample["after"] = text

    def _losses(self, model: "PreTrainedModel") -> RowLosses:
        return row_losses(on_device(model), self.rows, max_tokens=self.max_tokens)

    def _answers(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[str]:
        if not ranks.is_first():
            return [""] * len(self.prompts)
        prompts, limit = [ids for _, ids in self.prompts], self.evaluation.max_new_tokens
        return answers(on_device(model), tokenizer, prompts, limit)
