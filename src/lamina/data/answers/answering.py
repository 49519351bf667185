"""The original model answers prompts in batches, into a file from which a later start resumes.

All prompts decide the batches, and a batch's number seeds its samples: a resumed pass ends with the
answers of an undisturbed one.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lamina.data.answers.settings import AnswerSettings
from lamina.errors import ModelError
from lamina.measure.evaluate import answer_batches, end_tokens, generate
from lamina.measure.protocol import ModelRef
from lamina.measure.tasks.files import append_rows, read_appended
from lamina.measure.tasks.generation import loops
from lamina.runtime.console import repeating, stage
from lamina.runtime.device import memory_errors, release_memory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

POLL_S = 1.0
"""Seconds between two looks at what another process has written."""

Question = tuple[str, Sequence[int]]
"""Readable text, and the token ids up to the answer."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A line of answers.jsonl."""

    prompt: int
    """0-based number of the prompt."""
    question: str
    answer: str
    tokens: int
    outcome: str
    """kept, cut (at max_new_tokens), looping or empty; only the kept ones are trained."""


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A line of generated.jsonl, which an engine without Lamina writes."""

    prompt: int
    """0-based number of the prompt."""
    ids: list[int]
    """Tokens of the answer, with the one that ended it."""


N = TypeVar("N", Answer, Generated)


def answer_questions(
    path: Path, ref: ModelRef, settings: AnswerSettings, questions: Sequence[Question]
) -> None:
    """Append the model's answers that a file lacks, in order of length.

    Raises what loading the model does, and TrainingError if memory runs out.
    """
    known = {each.prompt for each in read_answers(path)}
    if len(known) == len(questions):
        return
    with memory_errors("the untouched model", lambda: "lower data.answer_settings.batch_tokens"):
        model, tokenizer = ref.load().eval(), ref.load_tokenizer()
        ends = end_tokens(model.generation_config, tokenizer)
        new = settings.max_new_tokens
        lengths = [len(ids) + new for _, ids in questions]
        batches = answer_batches(model, lengths, settings.batch_tokens)
        with stage("answering", len(questions), "prompts", first=len(known)) as shown:
            for number, batch in enumerate(batches):
                missing = {*batch} - known
                if not missing:
                    continue
                with _seeded(f"{settings.seed} {number}"):
                    generated = generate(
                        model,
                        tokenizer,
                        [questions[prompt][1] for prompt in batch],
                        max_new_tokens=new,
                        temperature=settings.temperature,
                    )
                found = {p: ids for p, ids in zip(batch, generated, strict=True) if p in missing}
                append_answers(path, questions, found, tokenizer, ends)
                shown.advance(len(found))
    del model
    release_memory()


def append_answers(
    path: Path,
    questions: Sequence[Question],
    generated: Mapping[int, Sequence[int]],
    tokenizer: "PreTrainedTokenizerBase",
    ends: Sequence[int],
) -> None:
    """Append answers to a file: `generated` has their tokens, by the number of the prompt."""
    found = [
        Answer(
            prompt=prompt,
            question=questions[prompt][0],
            answer=(text := tokenizer.decode(ids, skip_special_tokens=True)),
            tokens=len(ids),
            outcome=_outcome(text, ids, ends),
        )
        for prompt, ids in generated.items()
    ]
    append_rows(path, [asdict(each) for each in found])


def read_answers(path: Path) -> list[Answer]:
    """Return a file's answers, in the order of the prompts; none if it is damaged or missing."""
    return read_numbered(Answer, path)


def read_numbered(kind: type[N], path: Path) -> list[N]:
    """Return a file's rows, as `read_answers` does."""
    try:
        found = {each.prompt: each for each in read_appended(kind, path)}
    except ModelError:
        path.unlink()
        return []
    return [found[prompt] for prompt in sorted(found)]


@contextmanager
def watched(path: Path, total: int) -> Iterator[None]:
    """Show how many of the prompts another process has answered, by the lines of a file."""
    append_rows(path, [])  # makes it, or drops a line that was not finished
    with path.open("rb") as file:

        def new() -> int:
            return file.read().count(b"\n")

        with (
            stage("answering", total, "prompts", first=new()) as shown,
            repeating(lambda: shown.advance(new()), POLL_S),
        ):
            yield


def seed_of(text: str) -> int:
    """Return a seed that depends on a text."""
    return int.from_bytes(sha256(text.encode()).digest()[:7])


def _outcome(text: str, ids: Sequence[int], ends: Sequence[int]) -> str:
    if loops(ids):
        return "looping"
    if ids[-1] not in ends:
        return "cut"
    return "kept" if text.strip() else "empty"


@contextmanager
def _seeded(text: str) -> Iterator[None]:
    """Seed torch's generators in the body, by a text, and leave them as they were."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed_of(text))
        yield
