"""vLLM answers the prompts, in a separate process, whose environment may lack Lamina."""

import sys
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from lamina.data.answers.answering import (
    Generated,
    Question,
    append_answers,
    read_numbered,
    seed_of,
    watched,
)
from lamina.data.answers.settings import VLLM_KEY, AnswerSettings
from lamina.depth.loading import generation_config
from lamina.depth.reduction import reduction
from lamina.depth.surgery import layer_count
from lamina.errors import ModelError
from lamina.measure.evaluate import end_tokens
from lamina.measure.protocol import ModelRef
from lamina.measure.separate import in_engine
from lamina.weights.source import resolve

GENERATED_FILE = "generated.jsonl"

BATCH = 512
"""Prompts in one call of vLLM, which makes batches of its own; a killed pass loses one call."""


def interpreter(settings: AnswerSettings, *, in_4bit: bool) -> str | None:
    """Return the interpreter whose vLLM answers; None if transformers does."""
    if settings.vllm != "auto":
        return None if settings.vllm == "none" else settings.vllm
    return sys.executable if find_spec("vllm") and not in_4bit else None


@cache
def vllm_version(python: str) -> str:
    """Return the version of an interpreter's vLLM; raises ConfigError if it has none."""
    return str(in_engine("vllm", python, {"model": None}, VLLM_KEY)["version"])


def generated_before(path: Path) -> int:
    """Return how many answers an interrupted pass has generated for a file of answers."""
    return len(read_numbered(Generated, path.with_name(GENERATED_FILE)))


def answer_through_vllm(
    path: Path, ref: ModelRef, settings: AnswerSettings, questions: Sequence[Question], python: str
) -> None:
    """Append the model's answers to a file, once all are generated.

    Until then their tokens are kept beside it, in generated.jsonl, from which a killed pass
    resumes. Raises ModelError if vLLM refuses the model.
    """
    generated, new = path.with_name(GENERATED_FILE), settings.max_new_tokens
    tokenizer = ref.load_tokenizer()
    source = resolve(ref.name, ref.revision)
    whole = reduction(source, range(layer_count(source.config))).blueprint
    ends = end_tokens(generation_config(source) or whole.generation_config, tokenizer)
    sampled = settings.temperature > 0
    known = {each.prompt for each in read_numbered(Generated, generated)}
    rows = [
        {
            "prompt": prompt,
            "prompt_ids": [*ids],
            "seed": seed_of(f"{settings.seed} {prompt}") if sampled else None,
        }
        for prompt, (_, ids) in enumerate(questions)
    ]
    calls = [rows[first : first + BATCH] for first in range(0, len(rows), BATCH)]
    request = {
        "model": ref.name,
        "revision": ref.revision,
        "dtype": ref.dtype,
        "max_model_len": max(len(ids) for _, ids in questions) + new,
        "batches": [call for call in calls if any(row["prompt"] not in known for row in call)],
        "output": str(generated),
        "sampling": {
            "max_tokens": new,
            "temperature": settings.temperature,
            "stop_token_ids": ends,
            "detokenize": False,
        },
    }
    if request["batches"]:
        try:
            in_engine("vllm", python, request, VLLM_KEY, watched(generated, len(questions)))
        except ModelError as error:
            raise ModelError(f"{error}; with {VLLM_KEY}=none, transformers answers") from error
    found = {each.prompt: each.ids for each in read_numbered(Generated, generated)}
    append_answers(path, questions, found, tokenizer, ends)
    generated.unlink()
