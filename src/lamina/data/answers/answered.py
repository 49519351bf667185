"""Training rows with the original model's answers in place of their own."""

import json
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.data.answers.answering import Answer, Question, answer_questions, read_answers, watched
from lamina.data.answers.settings import AnswerSettings
from lamina.data.answers.through_vllm import (
    answer_through_vllm,
    generated_before,
    interpreter,
    vllm_version,
)
from lamina.data.files import row_features
from lamina.data.splits import Split
from lamina.data.tokenization import Tokenization
from lamina.depth.loading import GENERATION_FILE, refuse_unknown_tokens
from lamina.errors import DataError, TrainingError
from lamina.measure.protocol import ModelRef
from lamina.measure.resumable import tokenizer_digest
from lamina.measure.separate import SeparateProcessError, ask
from lamina.runtime import distributed
from lamina.runtime.cache import cached, digest, folder_of
from lamina.runtime.files import write_rows
from lamina.weights.reading import identity
from lamina.weights.source import resolve

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

PROTOCOL = 2
"""Version of the answers: increment it when the same model would get others."""

ANSWERS_FILE, UNFINISHED_FILE = "answers.jsonl", "unfinished.jsonl"


@dataclass(frozen=True, kw_only=True)
class Original:
    """The model that writes the answers."""

    ref: ModelRef
    isolated: bool
    """Whether to load it in a separate process, because a backend patched the model classes."""


@dataclass(frozen=True, kw_only=True)
class AnswerCount:
    """How many prompts were answered, and how the answers ended."""

    kept: int
    """Answers that are trained."""
    cut: int
    """Answers that max_new_tokens cut off."""
    looping: int
    """Answers that repeat themselves."""
    empty: int
    long: int
    """Prompts that leave no room for max_new_tokens within max_seq_length; not answered."""

    @property
    def unused(self) -> int:
        """How many prompts have no answer to train."""
        return self.cut + self.looping + self.empty + self.long

    def __str__(self) -> str:
        """Return all counts as text."""
        return ", ".join(f"{count:,} {name}" for name, count in asdict(self).items())


def refuse_plain_text(split: Split) -> None:
    """Refuse rows that ask nothing."""
    if split.conversion.trained == "all":
        raise DataError(
            f"data.answers=original: {split.origin} has {split.conversion.description} alone, "
            "which asks nothing: use data.answers=given, or rows with a question"
        )


def refuse_missing_engine(settings: AnswerSettings, *, in_4bit: bool) -> None:
    """Raise ConfigError if the chosen interpreter lacks vLLM."""
    if python := interpreter(settings, in_4bit=in_4bit):
        vllm_version(python)


def answered(
    split: Split, tokenize: Tokenization, settings: AnswerSettings, original: Original
) -> tuple[Split, AnswerCount]:
    """Return the rows with the original's answers, which are cached for the other jobs of a sweep.

    Of a chat, the first question is answered, and what follows is left out. Unusable rows remain,
    with their problem. Raises DataError if no answer can be trained.
    """
    rows = tokenize.questions(split)
    lengths, problems = list(map(len, rows["prompt_ids"][:])), rows["problem"][:]
    longest = tokenize.max_seq_length - settings.max_new_tokens
    asked = [i for i, problem in enumerate(problems) if problem is None and lengths[i] <= longest]
    chosen = rows.select(asked)
    questions = [*zip(chosen["question"][:], chosen["prompt_ids"][:], strict=True)]
    source = resolve(original.ref.name, original.ref.revision)
    refuse_unknown_tokens(source, tokenize.tokenizer, (ids for _, ids in questions))
    folder = folder_of("answers", _parts(original.ref, settings, questions))
    answers = distributed.first_process_first(
        "answers", lambda: _cached_answers(folder, original, settings, questions)
    )
    found = Counter(answer.outcome for answer in answers)
    names = ("kept", "cut", "looping", "empty")
    long = len(problems) - sum(problem is not None for problem in problems) - len(asked)
    count = AnswerCount(**{name: found[name] for name in names}, long=long)
    logger.info("answers of %s: %s: %s", original.ref.name, count, folder / ANSWERS_FILE)
    if not count.kept:
        raise DataError(
            f"data.answers=original: none of {len(answers) + long:,} answers of "
            f"{original.ref.name} can be trained ({count}): raise "
            "data.answer_settings.max_new_tokens, or use data.answers=given"
        )
    texts = {i: a.answer for i, a in zip(asked, answers, strict=True) if a.outcome == "kept"}
    return _with_answers(split, rows, texts), count


def _parts(ref: ModelRef, settings: AnswerSettings, questions: Sequence[Question]) -> list[str]:
    """Return everything that the answers depend on."""
    source = resolve(ref.name, ref.revision)
    path = source.fetch(GENERATION_FILE, required=False)
    return [
        *identity(source),
        path.read_text(encoding="utf-8") if path else "",
        tokenizer_digest(ref.load_tokenizer()),
        f"{ref.dtype} {ref.in_4bit} {replace(settings, vllm='')} protocol {PROTOCOL}",
        *_engine(interpreter(settings, in_4bit=ref.in_4bit)),
        sha256(json.dumps(questions).encode()).hexdigest(),
    ]


def _engine(python: str | None) -> list[str]:
    """Return what answers, with its version."""
    if python:
        return [f"vllm {vllm_version(python)}"]
    return [f"{name} {version(name)}" for name in ("torch", "transformers")]


def _cached_answers(
    folder: Path, original: Original, settings: AnswerSettings, questions: Sequence[Question]
) -> list[Answer]:
    """Return the answers; another process that needs the same ones waits for them."""
    path, unfinished = folder / ANSWERS_FILE, folder / UNFINISHED_FILE
    with cached(folder, "answers.cached") as entry:
        if entry.content is None or entry.content["sha256"] != digest(path):
            python = interpreter(settings, in_4bit=original.ref.in_4bit)
            through = f" through {_engine(python)[0]}" if python else ""
            count, known = f"{len(questions):,}", len(read_answers(unfinished))
            before = known or generated_before(unfinished)
            more = through + (f", {before:,} answered before" if before else "")
            logger.info("%s answers %s prompts%s", original.ref.name, count, more)
            if python:
                if known < len(questions):
                    answer_through_vllm(unfinished, original.ref, settings, questions, python)
            elif original.isolated:
                _answer_isolated(unfinished, original.ref, settings, questions)
            else:
                answer_questions(unfinished, original.ref, settings, questions)
            write_rows(path, [asdict(each) for each in read_answers(unfinished)])
            entry.content = {"sha256": digest(path)}
        unfinished.unlink(missing_ok=True)
        return read_answers(path)


def _answer_isolated(
    path: Path, ref: ModelRef, settings: AnswerSettings, questions: Sequence[Question]
) -> None:
    request = {"path": str(path), "questions": questions}
    command = [sys.executable, "-m", "lamina.data.answers.isolated"]
    try:
        with watched(path, len(questions)):
            found = ask(command, {**request, "ref": asdict(ref), "settings": asdict(settings)})
    except SeparateProcessError as error:
        raise TrainingError(f"{ref.name} could not answer: {error}; see train.log") from error
    if "error" in found:
        raise TrainingError(found["error"])


def _with_answers(split: Split, questions: "Dataset", answers: dict[int, str]) -> Split:
    """Return the questions with an answer, and the unusable rows, in the order of the source."""
    from datasets import Dataset

    files, numbers = split.numbers()
    rows = []
    columns = (questions["content"][:], questions["problem"][:], files, numbers)
    for index, (content, problem, file, number) in enumerate(zip(*columns, strict=True)):
        if problem or index in answers:
            text = "{}" if problem else _completed(content, answers[index])
            rows.append({"file": file, "row": number, "content": text, "problem": problem})
    origins = split.files or (split.origin,)
    names = tuple(f"{name} (answered by the original)" for name in origins)
    made = Dataset.from_list(rows, features=row_features())
    return replace(split, rows=made, files=names, positions=None, names={})


def _completed(content: str, answer: str) -> str:
    """Return a row of the trained columns, as JSON."""
    row = json.loads(content)
    said = [{"role": "assistant", "content": answer}]
    if "messages" in row:
        row["messages"] += said
    else:
        row["completion"] = answer if isinstance(row["prompt"], str) else said
    return json.dumps(row)
