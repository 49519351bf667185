"""The measurements around a healing: before removal, after it, and of what was written."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from lamina.measure.evaluate import (
    SAMPLE_ROWS,
    Evaluation,
    RowLosses,
    answers,
    perplexity,
    row_losses,
)
from lamina.measure.isolated import Elsewhere
from lamina.measure.results import ROWS_FILE, Record
from lamina.runtime import distributed
from lamina.runtime.device import on_device
from lamina.runtime.files import write_rows

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

    def elsewhere(
        self,
        name: str,
        revision: str | None,
        kept_layers: Sequence[int] | None,
        dtype: str,
        *,
        in_4bit: bool,
    ) -> Elsewhere:
        """Return a model that is measured in a process of its own; see `Elsewhere`."""
        return Elsewhere(
            name=name,
            revision=revision,
            kept_layers=None if kept_layers is None else list(kept_layers),
            dtype=dtype,
            in_4bit=in_4bit,
            rows=list(self.rows),
            prompts=[ids for _, ids in self.prompts],
            max_tokens=self.max_tokens,
            max_new_tokens=self.evaluation.max_new_tokens,
        )

    def loss(self, model: "PreTrainedModel | Elsewhere") -> float:
        """Return a model's loss on the rows, in nats a token."""
        return self._losses(model).mean()

    def reduced(
        self,
        model: "PreTrainedModel | Elsewhere",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        parameters: int,
        untouched: bool,
    ) -> None:
        """Evaluate after removal, before healing.

        Args:
            model: Before it gets an adapter.
            tokenizer: Its own.
            parameters: How many it has.
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
            num_parameters=parameters,
            samples=[{"prompt": p, "before": text, "after": None} for (p, _), text in answered],
        )

    def final(
        self, model: "PreTrainedModel | Elsewhere", tokenizer: "PreTrainedTokenizerBase | None"
    ) -> None:
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
        if distributed.is_first():
            write_rows(self.record.path.with_name(ROWS_FILE), sample_rows)
        after = self._answers(model, tokenizer)
        for sample, text in zip(self.record.content["samples"], after, strict=True):
            sample["after"] = text

    def _losses(self, model: "PreTrainedModel | Elsewhere") -> RowLosses:
        if isinstance(model, Elsewhere):
            return model.found[0]
        return row_losses(on_device(model), self.rows, max_tokens=self.max_tokens)

    def _answers(
        self, model: "PreTrainedModel | Elsewhere", tokenizer: "PreTrainedTokenizerBase | None"
    ) -> list[str]:
        if not distributed.is_first() or not self.prompts:
            return [""] * len(self.prompts)
        if isinstance(model, Elsewhere):
            return model.found[1]
        prompts, limit = [ids for _, ids in self.prompts], self.evaluation.max_new_tokens
        return answers(on_device(model), tokenizer, prompts, limit)
