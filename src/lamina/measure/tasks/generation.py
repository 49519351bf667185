"""Answers by generation, compared with the right ones; and how they end."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from lamina.errors import ConfigError
from lamina.measure.evaluate import end_tokens, padded_batches
from lamina.measure.tasks.figures import mean_metric
from lamina.measure.tasks.files import Flat, Health, ItemResult, Metric
from lamina.measure.tasks.items import Question, Task
from lamina.measure.tasks.prompts import Prompts, longest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
        new, ends = self.prompts.settings.max_new_tokens, end_tokens(self.model, tokenizer)
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


def answer_batches(
    model: "PreTrainedModel", lengths: Sequence[int], max_tokens: int
) -> list[list[int]]:
    """Group prompts, by their numbers, into batches; recurrent models get no padding.

    `lengths` are in tokens and include the answers, as `max_tokens` does.
    """
    found = list(padded_batches(lengths, max_tokens))
    if not getattr(model, "_is_stateful", False):
        return found
    return [[*group] for each in found for _, group in groupby(each, key=lengths.__getitem__)]


def generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: str = "",
    temperature: float = 0.0,
) -> list[list[int]]:
    """Return the tokens of each prompt's answer, up to and with the one that ends it.

    `stop` is a text that ends an answer, too. A temperature above 0 samples from all tokens.
    """
    import torch

    length, ends = max(map(len, prompts)), end_tokens(model, tokenizer)
    padding = tokenizer.pad_token_id
    if padding is None:
        padding = ends[0] if ends else 0
    padded = [[padding] * (length - len(ids)) + [*ids] for ids in prompts]
    mask = [[0] * (length - len(ids)) + [1] * len(ids) for ids in prompts]
    greedy: dict[str, Any] = dict.fromkeys(("temperature", "top_p", "top_k"))
    sampled = {"temperature": temperature, "top_p": 1.0, "top_k": 0}
    with torch.inference_mode():
        output = model.generate(
            input_ids=torch.tensor(padded, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            do_sample=temperature > 0,
            **(sampled if temperature else greedy),
            max_new_tokens=max_new_tokens,
            pad_token_id=padding,
            eos_token_id=ends or None,
            stopping_criteria=_stopping(tokenizer, stop, length),
        )
    return [_until(ids, ends) for ids in output[:, length:].tolist()]


def _until(ids: list[int], ends: Sequence[int]) -> list[int]:
    """Return an answer without the padding behind its end."""
    place = next((place for place, token in enumerate(ids) if token in ends), len(ids) - 1)
    return ids[: place + 1]


def _stopping(tokenizer: "PreTrainedTokenizerBase", stop: str, length: int) -> Any:
    """Return what ends a row of a batch once its answer contains `stop`."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    if not stop:
        return None
    # Two more tokens than the text has: an answer may spell it in other ones.
    recent = len(tokenizer(stop, add_special_tokens=False)["input_ids"]) + 2

    class Stop(StoppingCriteria):
        def __call__(self, ids: "torch.Tensor", scores: Any, **_: Any) -> Any:
            import torch

            texts = tokenizer.batch_decode(ids[:, length:][:, -recent:])
            return torch.tensor([stop in text for text in texts], device=ids.device)

    return StoppingCriteriaList([Stop()])


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
