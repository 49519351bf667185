"""Tasks by name, which the lm-eval library downloads, puts to the model and scores."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from difflib import get_close_matches
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from typing import TYPE_CHECKING, Any

from lamina.errors import DataError, either, reason_of
from lamina.measure.tasks.files import Flat, ItemResult, Metric, TaskResult
from lamina.measure.tasks.generation import THOUGHT_END
from lamina.measure.tasks.items import LibraryTask
from lamina.measure.tasks.settings import TaskSettings
from lamina.runtime.console import stage

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KINDS = {"generate_until": "generation", "loglikelihood_rolling": "text"}
"""Kinds of task by lm-eval's output_type; all others are choices."""

CORRECT = ("acc", "exact_match")
BOOTSTRAPS = 1000
"""Resamples for the error of a metric that is no mean; lm-eval's own 100,000 take minutes."""

TOKENS_PER_PROMPT = 512
"""For the number of prompts in a batch, which lm-eval wants to know."""


def refuse_unknown(names: Sequence[str], key: str) -> None:
    """Raise DataError if the library is not installed, or has no task of a name."""
    if find_spec("lm_eval") is None:
        raise DataError(
            f"{key}={names[0]}: no such file, and tasks by name need lm-eval: "
            "pip install 'lamina[tasks]', or give a file of items (.jsonl)"
        )
    known = _known()
    for name in names:
        if name not in known:
            near = get_close_matches(name, known)
            hint = f"; did you mean {either(near)}?" if near else ""
            raise DataError(f"{key}={name}: neither a file nor a task of lm-eval{hint}")


@cache
def _known() -> list[str]:
    from lm_eval.tasks import TaskManager

    with stage("reading the names of lm-eval's tasks"):
        return list(TaskManager().all_tasks)


def evaluate_library_task(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    task: LibraryTask,
    settings: TaskSettings,
) -> tuple[TaskResult, list[ItemResult]]:
    """Return a model's result in a task, or a group of tasks, and in each item.

    A group's figures count each item once. Raises DataError if the library fails, for instance
    because it cannot download the items.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    began = time.monotonic()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        # Its bars; the stage shows where we are.
        with stage(f"evaluating {task.name} with lm-eval"), redirect_stderr(StringIO()):
            found: dict[str, Any] = simple_evaluate(
                model=HFLM(
                    pretrained=model,
                    tokenizer=tokenizer,
                    batch_size=max(1, settings.batch_tokens // TOKENS_PER_PROMPT),
                    enable_thinking=settings.thinking,
                    think_end_token=THOUGHT_END if settings.thinking else None,
                    add_bos_token={"always": True, "never": False}.get(settings.bos),
                ),
                tasks=[task.name],
                num_fewshot=settings.few_shot or None,
                limit=settings.limit,
                apply_chat_template=settings.template == "chat",
                bootstrap_iters=BOOTSTRAPS,
            )
    except Exception as error:  # the code of thousands of tasks, and what they download
        raise DataError(f"{task.name} failed in lm-eval: {reason_of(error)}") from error
    return _result(task.name, found, settings, began), _items(task.name, found["samples"])


def _result(
    name: str, found: Mapping[str, Any], settings: TaskSettings, began: float
) -> TaskResult:
    samples: dict[str, list[dict[str, Any]]] = found["samples"]
    kinds = {found["configs"][each]["output_type"] for each in samples}
    hashes = [
        sample[key]
        for each in sorted(samples)
        for sample in samples[each]
        for key in ("doc_hash", "prompt_hash", "target_hash")
    ]
    shots = {found["n-shot"][each] for each in samples}
    protocol: dict[str, Flat] = {
        "scorer": "lm_eval",
        "lm_eval": version("lm_eval"),
        "version": ", ".join(sorted({str(found["versions"].get(each)) for each in samples})),
        "few_shot": ", ".join(map(str, sorted(shots))),
        "limit": settings.limit,
        "template": settings.template,
        "thinking": settings.thinking,
        "bos": settings.bos,
    }
    return TaskResult(
        kind=KINDS.get(min(kinds), "choices"),
        items=sum(len(_first_filter(rows)) for rows in samples.values()),
        items_hash=sha256("".join(hashes).encode()).hexdigest(),
        protocol=protocol,
        metrics=_metrics(found),
        seconds=time.monotonic() - began,
    )


def _metrics(found: Mapping[str, Any]) -> dict[str, Metric]:
    """Return each metric over the items of all tasks of a group."""
    parts: dict[str, list[tuple[float, float, int]]] = {}
    directions: dict[str, bool | None] = {}
    for task, rows in found["samples"].items():
        count, results = len(_first_filter(rows)), found["results"][task]
        for key, value in results.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = results.get(f"{metric}_stderr,{kind}")
            error = float(error) if isinstance(error, int | float) else math.nan
            name = metric if kind == "none" else f"{metric} {kind}"
            parts.setdefault(name, []).append((float(value), error, count))
            directions[name] = found["higher_is_better"].get(task, {}).get(metric)
    metrics = {}
    for name, values in parts.items():
        total = sum(count for *_, count in values)
        error = math.hypot(*(error * count for _, error, count in values)) / total
        mean = sum(value * count for value, _, count in values) / total
        stderr = None if math.isnan(error) else error
        better = directions[name]
        metrics[name] = Metric(value=mean, stderr=stderr, n=total, higher_is_better=better)
    return metrics


def _items(name: str, samples: Mapping[str, list[dict[str, Any]]]) -> list[ItemResult]:
    rows = [row for task in sorted(samples) for row in _first_filter(samples[task])]
    return [_item(name, number, row) for number, row in enumerate(rows)]


def _item(name: str, number: int, row: Mapping[str, Any]) -> ItemResult:
    answers = row["filtered_resps"]
    if isinstance(answers[0], list):  # a filter that keeps all of several answers
        answers = answers[0]
    is_text = isinstance(answers[0], str)
    pairs = [each for each in answers if isinstance(each, list | tuple) and len(each) == 2]
    return ItemResult(
        task=name,
        id=number,
        correct=_is_right(next((row[each] for each in CORRECT if row.get(each) is not None), None)),
        correct_norm=_is_right(row.get("acc_norm")),
        log_likelihoods=[float(value) for value, _ in pairs] if pairs and not is_text else None,
        answer=answers[0] if is_text else None,
    )


def _is_right(score: Any) -> bool | None:
    """Return whether an item's score is that of a right answer; None if it is a fraction."""
    return bool(score) if score in (0, 1) else None


def _first_filter(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per item; lm-eval has one for each way to read an answer."""
    return [row for row in rows if row["filter"] == rows[0]["filter"]]
