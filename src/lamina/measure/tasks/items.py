"""The items of tasks, read from .jsonl files that anyone may have written."""

import json
import re
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.errors import DataError, did_you_mean
from lamina.measure.tasks.settings import TaskSettings

KEY = "evaluation.tasks"
SUFFIX = ".jsonl"

ROWS = "eval_rows"
"""The task of a data set's evaluation rows, which is no file."""

LARGEST_FILE, LONGEST_ROW, MOST_CHOICES = 1_000_000_000, 10_000_000, 100
"""Bytes of a file and of a row, choices of an item."""

SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a pair, which no tokenizer takes."""


@dataclass(frozen=True)
class Choices:
    """What follows a context, with the 0-based index of the right choice."""

    id: int
    context: str
    choices: tuple[str, ...]
    label: int

    @property
    def example(self) -> tuple[str, str]:
        """Return the question and its answer."""
        return self.context, self.choices[self.label]


@dataclass(frozen=True)
class Text:
    """A document."""

    id: int
    text: str


@dataclass(frozen=True)
class Question:
    """A question with the answer that is right."""

    id: int
    question: str
    answer: str

    @property
    def example(self) -> tuple[str, str]:
        """Return the question and its answer."""
        return self.question, self.answer


Item = Choices | Text | Question

FORMS: dict[str, tuple[str, ...]] = {
    "choices": ("context", "choices", "label"),
    "target": ("context", "target"),
    "generation": ("question", "answer"),
    "text": ("text",),
}
"""Fields of an item of each form; others are ignored. A target is the only choice."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A file's items."""

    name: str
    path: Path
    kind: str
    """choices, text or generation."""
    items: Sequence[Item]
    examples: Sequence[tuple[str, str]]
    """Solved items before each item: question and answer."""


@dataclass(frozen=True, kw_only=True)
class LibraryTask:
    """A task of the lm-eval library."""

    name: str


def read_tasks(
    names: Sequence[str], settings: TaskSettings, key: str = KEY
) -> list[Task | LibraryTask]:
    """Read .jsonl files, and look up all other names in the lm-eval library.

    Raises DataError if a file is missing or has a row that cannot be used, or if a name is unknown
    or the library is not installed.
    """
    tasks: list[Task | LibraryTask] = []
    for name in names:
        path = _file(name, key)
        tasks.append(_read(path, name, settings, key) if path else LibraryTask(name=name))
        called = [ROWS, *(task.name for task in tasks)]
        if len({*called}) < len(called):
            other = "the rows of data" if called[-1] == ROWS else "another task"
            raise DataError(
                f"{key}={name}: {called[-1]} is the name of {other}: rename the file, or leave it "
                "out"
            )
    if library := [task.name for task in tasks if isinstance(task, LibraryTask)]:
        from lamina.measure.tasks.lm_eval_tasks import refuse_unknown

        refuse_unknown(library, key)
    return tasks


def _file(name: str, key: str) -> Path | None:
    """Return the path of a file; None for a name in the lm-eval library."""
    try:
        path = Path(name).expanduser()
        if path.is_file():
            return path
    except (OSError, RuntimeError) as error:  # a name too long, or ~ and no user
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{key}={name}: {reason}") from error
    if path.suffix != SUFFIX:
        return None
    near = path.parent.glob(f"*{SUFFIX}") if path.parent.is_dir() else ()
    hint = did_you_mean(path.name, (each.name for each in near if each.is_file()))
    raise DataError(f"{key}={name}: no such file{hint}")


def _read(path: Path, name: str, settings: TaskSettings, key: str) -> Task:
    named = f"{key}={name}"
    form, items = "", list[Item]()
    for number, row in _rows(path, named):
        place = f"{named}, row {number}"
        form = form or _form(row, place)
        items.append(_item(form, row, len(items), place))
    if not items:
        raise DataError(f"{named}: the file has no items")
    few_shot = 0 if form == "text" else settings.few_shot
    if len(items) <= few_shot:
        raise DataError(
            f"evaluation.task_settings.few_shot={few_shot}: {named} has {len(items)} items, which "
            "leaves none to score"
        )
    examples = [item.example for item in items[:few_shot] if not isinstance(item, Text)]
    kind = "choices" if form == "target" else form
    scored = items[few_shot:][: settings.limit]
    return Task(name=path.stem, path=path, kind=kind, items=scored, examples=examples)


def _rows(path: Path, named: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each row with its number, which is the line's as in an editor."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise DataError(f"{named}: expected at most {LARGEST_FILE:,} bytes")
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LONGEST_ROW + 1):
                number += 1
                if len(line) > LONGEST_ROW:
                    raise DataError(
                        f"{named}, row {number}: expected at most {LONGEST_ROW:,} bytes"
                    )
                if line.strip():
                    yield number, _parsed(line, f"{named}, row {number}")
    except OSError as error:
        raise DataError(f"{named} cannot be read: {error.strerror or error}") from error


def _parsed(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 (byte {error.start + 1})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON; expected one object per line") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: found {type(row).__name__}; expected a JSON object")
    return row


def _form(row: dict[str, Any], place: str) -> str:
    for form, names in FORMS.items():
        if row.keys() >= {*names}:
            return form
    forms = "; ".join(", ".join(names) for names in FORMS.values())
    found = ", ".join(map(reprlib.repr, sorted(row)[:8])) or "no field"
    raise DataError(f"{place}: found {found}; expected the fields of one form: {forms}")


def _item(form: str, row: dict[str, Any], number: int, place: str) -> Item:
    for name in FORMS[form]:
        if name not in row:
            raise DataError(f"{place}: {name} is missing")
    if form == "text":
        return Text(number, _text(row, "text", place))
    if form == "generation":
        return Question(number, _text(row, "question", place), _text(row, "answer", place))
    context = _text(row, "context", place, may_be_empty=True)
    if form == "target":
        return Choices(number, context, (_text(row, "target", place),), 0)
    choices, label = row["choices"], row["label"]
    if not isinstance(choices, list) or not 2 <= len(choices) <= MOST_CHOICES:
        raise DataError(
            f"{place}: choices is {reprlib.repr(choices)}, expected a list of 2 to {MOST_CHOICES}"
        )
    texts = tuple(_text({"choices": each}, "choices", place) for each in choices)
    if type(label) is not int or not 0 <= label < len(texts):
        raise DataError(f"{place}: label is {reprlib.repr(label)}, expected 0 to {len(texts) - 1}")
    return Choices(number, context, texts, label)


def _text(row: dict[str, Any], name: str, place: str, *, may_be_empty: bool = False) -> str:
    value = row[name]
    if not isinstance(value, str) or not (value.strip() or may_be_empty):
        raise DataError(f"{place}: {name} is {reprlib.repr(value)}, expected text")
    if SURROGATE.search(value):
        raise DataError(f"{place}: {name} is not UTF-8 (half of a surrogate pair)")
    return value
