"""Multiple choice by likelihood: which continuation of a context a model finds most likely."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from lamina.errors import DataError
from lamina.measure.evaluate import padded_batches
from lamina.measure.tasks.figures import loss_metrics, mean_metric
from lamina.measure.tasks.files import Flat, ItemResult, Metric
from lamina.measure.tasks.forward import Row, log_likelihoods, longest_packed, packed
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
        lengths = [sum(len(row.ids) for row in self._rows(each)) for each in encoded]
        return list(padded_batches(lengths, self.prompts.settings.batch_tokens))

    def score(self, batch: Sequence[Encoded]) -> list[ItemResult]:
        """Score some items."""
        rows = [self._rows(each) for each in batch]
        found = iter(log_likelihoods(self.model, [row for each in rows for row in each]))
        results = []
        for each, own in zip(batch, rows, strict=True):
            tokens = [token for _ in own for token in zip(*next(found), strict=True)]
            results.append(self._result(each, tokens))
        return results

    def metrics(
        self, encoded: Sequence[Encoded], results: Sequence[ItemResult]
    ) -> dict[str, Metric]:
        """Return the task's figures."""
        counts = [len(each.texts) for each in encoded]
        correct = [float(bool(each.correct)) for each in results]
        if max(counts) == 1:
            nll, tokens = (
                [each.nll or 0.0 for each in results],
                [each.tokens or 0 for each in results],
            )
            return {"acc": mean_metric(correct), **loss_metrics(nll, tokens)}
        chance = sum(1 / count for count in counts) / len(counts)
        normed = [float(bool(each.correct_norm)) for each in results]
        return {"acc": mean_metric(correct, chance), "acc_norm": mean_metric(normed, chance)}

    @cached_property
    def _packed(self) -> int | None:
        return longest_packed(self.model)

    def _rows(self, each: Encoded) -> list[Row]:
        """Return what the model reads for an item: one row, or one per choice."""
        begin, shared = min(each.begins), _shared(each.texts)
        if len(each.texts) > 1 and len({*each.begins}) == 1 and shared >= begin and self._packed:
            row = packed(each.texts[0][:shared], [text[shared:] for text in each.texts], begin)
            if len(row.ids) <= self._packed:
                return [row]
        return [
            Row(ids=text[:-1], sources=range(begin - 1, len(text) - 1), targets=text[begin:])
            for text, begin in zip(each.texts, each.begins, strict=True)
        ]

    def _result(self, each: Encoded, tokens: list[tuple[float, bool]]) -> ItemResult:
        item, sums, place = each.item, [], 0
        for text, begin in zip(each.texts, each.begins, strict=True):
            own = tokens[place : place + len(text) - begin]
            sums.append(sum(value for value, _ in own))
            place += len(own)
        if len(sums) == 1:
            return ItemResult(
                task=self.task.name,
                id=item.id,
                correct=all(likeliest for _, likeliest in tokens),
                log_likelihoods=sums,
                nll=-sums[0],
                tokens=len(tokens),
            )
        normed = [value / len(text) for value, text in zip(sums, item.choices, strict=True)]
        return ItemResult(
            task=self.task.name,
            id=item.id,
            correct=_best(sums) == item.label,
            correct_norm=_best(normed) == item.label,
            log_likelihoods=sums,
            tokens=len(tokens),
        )


def _shared(texts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all texts begin with."""
    first, *rest = texts
    for place, token in enumerate(first):
        if any(len(text) <= place or text[place] != token for text in rest):
            return place
    return len(first)


def _best(values: Sequence[float]) -> int:
    """Return the index of the largest value, the first of equal ones."""
    return max(range(len(values)), key=values.__getitem__)
