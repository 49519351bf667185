"""Answers by generation, compared with the right ones; and how they end."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lamina.errors import ConfigError
from lamina.measure.evaluate import answer_batches, end_tokens, generate
from lamina.measure.tasks.figures import mean_metric
from lamina.measure.tasks.files import Flat, Health, ItemResult, Metric
from lamina.measure.tasks.items import Question, Task
from lamina.measure.tasks.prompts import Prompts, longest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOOP_TOKENS, LOOP_TIMES = 8, 4
"""An answer loops if some run of so many tokens occurs in it so many times."""

MARK = "####"
"""Stands before the final number of a reference with its reasoning, as in GSM8K."""

NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
THOUGHT_END = "</think>"


@dataclass(frozen=True)
class Encoded:
    """A question as token ids."""

    item: Question
    ids: Sequence[int]

    @property
    def scored(self) -> object:
        """What is scored."""
        return [*self.ids], self.item.answer


@dataclass
class Answers:
    """Generates a task's answers with one model, greedily."""

    model: "PreTrainedModel"
    task: Task
    prompts: Prompts

    def protocol(self) -> dict[str, Flat]:
        """What the figures depend on besides the items and the model."""
        new = self.prompts.settings.max_new_tokens
        return {"join": self.prompts.join, "stop": self.prompts.stop, "max_new_tokens": new}

    def encode(self, item: Question) -> Encoded:
        """Return a prompt's token ids, cut from the left so that the answer has room."""
        new = self.prompts.settings.max_new_tokens
        most = longest(self.model.config, self.prompts.tokenizer)
        if new >= most:
            raise ConfigError(
                f"evaluation.task_settings.max_new_tokens={new}: the model's longest sequence has "
                f"{most} tokens, which leaves none for the question"
            )
        ids = self.prompts.encode(self.prompts.question(item.question, self.task.examples))
        return Encoded(item, ids[-(most - new) :])

    def batches(self, encoded: Sequence[Encoded]) -> list[list[int]]:
        """Group items, by their numbers, into batches."""
        settings = self.prompts.settings
        lengths = [len(each.ids) + settings.max_new_tokens for each in encoded]
        return answer_batches(self.model, lengths, settings.batch_tokens)

    def score(self, batch: Sequence[Encoded]) -> list[ItemResult]:
        """Answer some questions."""
        tokenizer, stop = self.prompts.tokenizer, self.prompts.stop
        ends = end_tokens(self.model.generation_config, tokenizer)
        new = self.prompts.settings.max_new_tokens
        prompts, results = [each.ids for each in batch], []
        generated = generate(self.model, tokenizer, prompts, max_new_tokens=new, stop=stop)
        for each, ids in zip(batch, generated, strict=True):
            text = tokenizer.decode(ids, skip_special_tokens=True)
            answer = text.split(stop)[0] if stop else text
            ended = answer != text or len(ids) < new or ids[-1] in ends
            results.append(
                ItemResult(
                    task=self.task.name,
                    id=each.item.id,
                    correct=is_right(answer, each.item.answer),
                    tokens=len(ids),
                    answer=answer,
                    ended=ended,
                    looped=loops(ids),
                )
            )
        return results

    def metrics(self, _: Sequence[Encoded], results: Sequence[ItemResult]) -> dict[str, Metric]:
        """Return the task's figures."""
        return {"exact_match": mean_metric([float(bool(each.correct)) for each in results])}


def health(results: Sequence[ItemResult]) -> Health:
    """Return how a task's answers end."""
    ended = sum(bool(each.ended) for each in results) / len(results)
    looped = sum(bool(each.looped) for each in results) / len(results)
    return Health(ended=ended, looped=looped, capped=1 - ended)


def loops(ids: Sequence[int]) -> bool:
    """Whether an answer repeats itself."""
    runs = Counter(tuple(ids[n : n + LOOP_TOKENS]) for n in range(len(ids) - LOOP_TOKENS + 1))
    return max(runs.values(), default=0) >= LOOP_TIMES


def is_right(answer: str, reference: str) -> bool:
    """Whether an answer, without its thoughts and outer spaces, is the reference.

    Of a reference with reasoning only its final number counts, and of the answer its last number.
    """
    answer = answer.rpartition(THOUGHT_END)[2]
    if MARK not in reference:
        return answer.strip() == reference.strip()
    numbers = NUMBER.findall(answer)
    return bool(numbers) and _plain(numbers[-1]) == _plain(reference.rpartition(MARK)[2])


def _plain(number: str) -> str:
    return re.sub(r"[$,\s]", "", number).rstrip(".")
