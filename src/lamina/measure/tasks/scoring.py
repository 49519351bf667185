"""Scores one model in tasks, item by item; processes share the items, and a stop loses few."""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from lamina.measure.tasks.agreement import agreement
from lamina.measure.tasks.files import Flat, ItemResult, TaskResult
from lamina.measure.tasks.generation import Answers, health
from lamina.measure.tasks.items import LibraryTask, Task
from lamina.measure.tasks.likelihood import Likelihoods
from lamina.measure.tasks.prompts import Prompts
from lamina.measure.tasks.settings import TaskSettings
from lamina.measure.tasks.text import Losses
from lamina.runtime import distributed
from lamina.runtime.console import stage

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Write = Callable[[Sequence[ItemResult]], object]


def evaluate_tasks(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    tasks: Sequence[Task | LibraryTask],
    settings: TaskSettings,
    *,
    done: Sequence[ItemResult] = (),
    write: Write = lambda items: None,
    original: "PreTrainedModel | None" = None,
) -> dict[str, TaskResult]:
    """Return a model's result in each task, by name; all processes must call it and get the same.

    Items among `done`, of an earlier start, are not scored again; new ones go to `write` after each
    batch, in the first process. With the original model, texts are also compared with its
    predictions. Raises ConfigError if a setting does not fit the model, and DataError if an item
    does not.
    """
    model.eval()
    refuse_unfit(model, tokenizer, tasks[1:], settings)  # not after hours with the first
    before = {(each.task, each.id): each for each in done}
    results = {}
    for task in tasks:
        if isinstance(task, LibraryTask):
            from lamina.measure.tasks.lm_eval_tasks import evaluate_library_task

            mine = None
            if distributed.is_first():
                mine, items = evaluate_library_task(model, tokenizer, task, settings)
                write([each for each in items if (each.task, each.id) not in before])
            distributed.wait_for_first()
            results[task.name] = next(each for each in distributed.gathered(mine) if each)
        else:
            prompts = Prompts(tokenizer, settings)
            results[task.name] = _evaluate(model, task, prompts, before, write, original)
    return results


def refuse_unfit(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    tasks: Sequence[Task | LibraryTask],
    settings: TaskSettings,
) -> None:
    """Raise what `evaluate_tasks` would if a setting or an item does not fit the model."""
    for task in tasks:
        if isinstance(task, Task):
            scorer = _scorer(model, task, Prompts(tokenizer, settings))
            scorer.protocol()
            for item in task.items:
                scorer.encode(item)


def _scorer(
    model: "PreTrainedModel",
    task: Task,
    prompts: Prompts,
    original: "PreTrainedModel | None" = None,
) -> Any:
    if task.kind == "choices":
        return Likelihoods(model, task, prompts)
    if task.kind == "text":
        return Losses(model, task, prompts, original)
    return Answers(model, task, prompts)


def _evaluate(
    model: "PreTrainedModel",
    task: Task,
    prompts: Prompts,
    before: Mapping[tuple[str, int], ItemResult],
    write: Write,
    original: "PreTrainedModel | None",
) -> TaskResult:
    began = time.monotonic()
    scorer = _scorer(model, task, prompts, original)
    encoded = [scorer.encode(item) for item in task.items]
    compared = original is not None and task.kind == "text"
    known = {}
    for item in task.items:
        found = before.get((task.name, item.id))
        if found and not (compared and found.kl is None):
            known[item.id] = found
    known |= _scored(scorer, [e for e in encoded if e.item.id not in known], task.name, write)
    results = [known[item.id] for item in task.items]
    digest = sha256()
    for each in encoded:
        digest.update(json.dumps(each.scored).encode() + b"\n")
    return TaskResult(
        kind=task.kind,
        items=len(results),
        items_hash=digest.hexdigest(),
        protocol=_protocol(task, prompts.settings) | scorer.protocol(),
        metrics=scorer.metrics(encoded, results),
        health=health(results) if task.kind == "generation" else None,
        agreement=agreement(results) if compared else None,
        seconds=time.monotonic() - began,
    )


def _scored(scorer: Any, encoded: Sequence[Any], name: str, write: Write) -> dict[int, ItemResult]:
    """Score items in rounds of one batch per process, and share what each found."""
    found: dict[int, ItemResult] = {}
    if not encoded:
        return found
    batches, size = scorer.batches(encoded), distributed.world_size()
    with stage(f"evaluating {name}", len(encoded), "items") as shown:
        for begin in range(0, len(batches), size):
            own = batches[begin : begin + size][distributed.rank() :][:1]
            mine = [each for batch in own for each in scorer.score([encoded[n] for n in batch])]
            every = distributed.gathered([asdict(each) for each in mine])
            new = [ItemResult(**each) for part in every for each in part]
            if distributed.is_first():
                write(new)
            found |= {each.id: each for each in new}
            shown.advance(len(new))
    return found


def _protocol(task: Task, settings: TaskSettings) -> dict[str, Flat]:
    chat = settings.template == "chat" and task.kind != "text"
    return {
        "scorer": "lamina",
        "file": task.path.name,
        "few_shot": len(task.examples),
        "limit": settings.limit,
        "template": "chat" if chat else "none",
        "thinking": settings.thinking if chat else None,
        "bos": settings.bos,
    }
