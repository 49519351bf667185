"""Loss and perplexity of documents, read in windows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from lamina.errors import ConfigError
from lamina.measure.evaluate import padded_batches
from lamina.measure.tasks.agreement import divergences
from lamina.measure.tasks.figures import loss_metrics
from lamina.measure.tasks.files import Flat, ItemResult, Metric
from lamina.measure.tasks.forward import MOST_LOGITS, Row, likelihoods_of, predictions
from lamina.measure.tasks.items import Task, Text
from lamina.measure.tasks.prompts import Prompts, longest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

USUAL_WINDOW = 1024
"""Most tokens of a window that is not set."""


@dataclass(frozen=True)
class Encoded:
    """A document as token ids."""

    item: Text
    ids: Sequence[int]

    @property
    def scored(self) -> object:
        """What is scored: all but the first token."""
        return [*self.ids]


@dataclass
class Losses:
    """Scores a task's documents with one model, and compares it with the original, if given."""

    model: "PreTrainedModel"
    task: Task
    prompts: Prompts
    original: "PreTrainedModel | None"

    def protocol(self) -> dict[str, Flat]:
        """What the figures depend on besides the items and the model."""
        return {"window": self.window, "stride": self.stride}

    @cached_property
    def window(self) -> int:
        """Tokens that the model sees at once."""
        most = longest(self.model.config, self.prompts.tokenizer)
        window = self.prompts.settings.window or min(most, USUAL_WINDOW)
        if window > most:
            raise ConfigError(
                f"evaluation.task_settings.window={window}: the model's longest sequence has "
                f"{most} tokens"
            )
        return window

    @cached_property
    def stride(self) -> int:
        """Tokens scored in each window but the first."""
        stride = self.prompts.settings.stride or self.window
        if stride > self.window:
            raise ConfigError(
                f"evaluation.task_settings.stride={stride}: with windows of {self.window} tokens, "
                "some would be in none"
            )
        return stride

    def encode(self, item: Text) -> Encoded:
        """Return a document's token ids."""
        return Encoded(item, self.prompts.encode(item.text))

    def batches(self, encoded: Sequence[Encoded]) -> list[list[int]]:
        """Group documents, by their numbers, into work after which their results are written."""
        lengths = [len(each.ids) for each in encoded]
        return list(padded_batches(lengths, self.prompts.settings.batch_tokens))

    def score(self, batch: Sequence[Encoded]) -> list[ItemResult]:
        """Score some documents, whose windows share forward passes."""
        owned = [
            (number, row)
            for number, each in enumerate(batch)
            for row in windows(each.ids, self.window, self.stride)
        ]
        nll, kl, top1 = ([[0.0] for _ in batch] for _ in range(3))
        vocabulary = self.model.config.get_text_config().vocab_size
        most = min(self.prompts.settings.batch_tokens, MOST_LOGITS // vocabulary)
        for numbers in padded_batches([len(row.ids) for _, row in owned], most):
            losses = self._losses([owned[number][1] for number in numbers])
            for number, found in zip(numbers, losses, strict=True):
                for sums, value in zip((nll, kl, top1), found, strict=True):
                    sums[owned[number][0]].append(value)
        return [
            ItemResult(
                task=self.task.name,
                id=each.item.id,
                nll=math.fsum(nll[number]),
                tokens=max(0, len(each.ids) - 1),
                kl=math.fsum(kl[number]) if self.original else None,
                top1=int(sum(top1[number])) if self.original else None,
            )
            for number, each in enumerate(batch)
        ]

    def metrics(self, _: Sequence[Encoded], results: Sequence[ItemResult]) -> dict[str, Metric]:
        """Return the task's figures."""
        nll = [each.nll or 0.0 for each in results]
        return loss_metrics(nll, [each.tokens or 0 for each in results])

    def _losses(self, rows: Sequence[Row]) -> list[tuple[float, float, int]]:
        """Return each window's summed loss, divergence and equal first choices."""
        logits, where = predictions(self.model, rows)
        targets = [target for row in rows for target in row.targets]
        found = likelihoods_of(logits, where, targets).double()
        counts = [len(row.targets) for row in rows]
        sums = [-part.sum().item() for part in found.split(counts)]
        if self.original is None:
            return [(value, 0.0, 0) for value in sums]
        others = divergences(self.original, rows, logits, where)
        return [(value, *other) for value, other in zip(sums, others, strict=True)]


def windows(ids: Sequence[int], window: int, stride: int) -> list[Row]:
    """Return the windows of a document, in which each token but its first is scored once.

    The first window is scored whole, each later one in its last `stride` tokens: those see at least
    `window - stride` tokens before them.
    """
    rows, begin, end = [], 1, min(len(ids), window + 1)
    while begin < end:
        first = max(0, end - 1 - window)
        sources = range(begin - 1 - first, end - 1 - first)
        rows.append(Row(ids=ids[first : end - 1], sources=sources, targets=ids[begin:end]))
        begin, end = end, min(len(ids), end + stride)
    return rows
