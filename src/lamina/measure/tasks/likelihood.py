"""Multiple choice by likelihood: which continuation of a context a model finds most likely."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from lamina.errors import DataError
from lamina.measure.evaluate import padded_batches
from lamina.measure.tasks.figures import loss_metrics, mean_metric
from lamina.measure.tasks.files import Flat, ItemResult, Metric
from lamina.measure.tasks.forward import (
    MOST_LOGITS,
    Row,
    likeliest,
    log_likelihoods,
    longest_packed,
    packed,
    shared_start,
)
from lamina.measure.tasks.items import Choices, Task
from lamina.measure.tasks.prompts import Prompts, longest

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Encoded:
    """An item as token ids: the whole text of each choice, and where its answer begins."""

    item: Choices
    texts: Sequence[Sequence[int]]
    begins: Sequence[int]

    @property
    def scored(self) -> object:
        """What is scored."""
        return [*self.texts], [*self.begins], self.item.label


@dataclass
class Likelihoods:
    """Scores a task's choices with one model."""

    model: "PreTrainedModel"
    task: Task
    prompts: Prompts

    def protocol(self) -> dict[str, Flat]:
        """What the figures depend on besides the items and the model."""
        return {"join": self.prompts.join}

    def encode(self, item: Choices) -> Encoded:
        """Return an item's token ids, cut from the left to what the model can read."""
        context = self.prompts.question(item.context, self.task.examples)
        texts, begins = [], []
        most = longest(self.model.config, self.prompts.tokenizer)
        for choice in item.choices:
            before, after = self.prompts.pair(context, self.prompts.join + choice)
            if not after or len(after) > most:
                raise DataError(
                    f"{self.task.path}: an answer of item {item.id} has {len(after)} tokens, "
                    f"expected 1 to {most}, the model's longest sequence"
                )
            whole = [*before, *after][-(most + 1) :]
            texts.append(whole)
            begins.append(len(whole) - len(after))
        return Encoded(item, texts, begins)

    def batches(self, encoded: Sequence[Encoded]) -> list[list[int]]:
        """Group items, by their numbers, into forward passes."""
        rows = [self._rows(each) for each in encoded]
        common = shared_start([row.ids for each in rows for row in each]) if self._packed else 0
        sizes = [sum(len(row.ids) - common for row in each) for each in rows]
        most = self.prompts.settings.batch_tokens
        if not self._packed:
            return list(padded_batches(sizes, most))
        vocabulary = self.model.config.get_text_config().vocab_size
        scored = [sum(len(row.sources) for row in each) for each in rows]
        found: list[list[int]] = []
        tokens = logits = 0
        for number in sorted(range(len(encoded)), key=lambda n: -sizes[n]):
            tokens += sizes[number]
            logits += scored[number] * vocabulary
            if not found or tokens > most or logits > MOST_LOGITS:
                found.append([])
                tokens, logits = sizes[number], scored[number] * vocabulary
            found[-1].append(number)
        return found

    def score(self, batch: Sequence[Encoded]) -> list[ItemResult]:
        """Score some items."""
        rows = [self._rows(each) for each in batch]
        every = [row for each in rows for row in each]
        if len({row.prefix is None for row in every}) > 1:  # a layer's window is too short for some
            return [found for each in batch for found in self.score([each])]
        if len(batch[0].texts) == 1:
            pairs = likeliest(self.model, every)
            return [self._target(*each) for each in zip(batch, pairs, strict=True)]
        found = iter(log_likelihoods(self.model, every))
        return [
            self._choice(each, [value for _ in own for value in next(found)])
            for each, own in zip(batch, rows, strict=True)
        ]

    def metrics(
        self, encoded: Sequence[Encoded], results: Sequence[ItemResult]
    ) -> dict[str, Metric]:
        """Return the task's figures."""
        counts = [len(each.texts) for each in encoded]
        correct = [float(bool(each.correct)) for each in results]
        if max(counts) == 1:
            nll = [each.nll or 0.0 for each in results]
            tokens = [each.tokens or 0 for each in results]
            return {"acc": mean_metric(correct), **loss_metrics(nll, tokens)}
        chance = sum(1 / count for count in counts) / len(counts)
        normed = [float(bool(each.correct_norm)) for each in results]
        return {"acc": mean_metric(correct, chance), "acc_norm": mean_metric(normed, chance)}

    @cached_property
    def _packed(self) -> int | None:
        return longest_packed(self.model)

    def _rows(self, each: Encoded) -> list[Row]:
        """Return what the model reads for an item: one row, or one per choice."""
        texts, begin, same = each.texts, min(each.begins), shared_start(each.texts)
        if len({*each.begins}) == 1 and same >= begin and self._packed:
            same = min(same, max(map(len, texts)) - 1)
            row = packed(texts[0][:same], [text[same:] for text in texts], begin)
            if len(row.ids) <= self._packed:
                return [row]
        return [
            Row(ids=text[:-1], sources=range(begin - 1, len(text) - 1), targets=text[begin:])
            for text, begin in zip(texts, each.begins, strict=True)
        ]

    def _target(self, each: Encoded, tokens: Sequence[tuple[float, bool]]) -> ItemResult:
        value = sum(value for value, _ in tokens)
        return ItemResult(
            task=self.task.name,
            id=each.item.id,
            correct=all(best for _, best in tokens),
            log_likelihoods=[value],
            nll=-value,
            tokens=len(tokens),
        )

    def _choice(self, each: Encoded, values: Sequence[float]) -> ItemResult:
        item, sums, place = each.item, list[float](), 0
        for text, begin in zip(each.texts, each.begins, strict=True):
            sums.append(sum(values[place : place + len(text) - begin]))
            place += len(text) - begin
        normed = [value / len(text) for value, text in zip(sums, item.choices, strict=True)]
        return ItemResult(
            task=self.task.name,
            id=item.id,
            correct=_best(sums) == item.label,
            correct_norm=_best(normed) == item.label,
            log_likelihoods=sums,
            tokens=len(values),
        )


def _best(values: Sequence[float]) -> int:
    """Return the index of the largest value, the first of equal ones."""
    return max(range(len(values)), key=values.__getitem__)
