"""Items are data from strangers: what is wrong with a file is said with its row and field."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lamina.errors import DataError
from lamina.measure.tasks.items import Choices, Question, Task, Text, read_tasks
from tests.measure.tasks.conftest import SETTINGS

CHOICE = {"context": "2+2", "choices": ["3", "4"], "label": 1}


def read(folder: Path, content: str, **settings: Any) -> Task:
    path = folder / "items.jsonl"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    (task,) = read_tasks([str(path)], replace(SETTINGS, **settings))
    assert isinstance(task, Task)
    return task


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("row", "kind", "item"),
    [
        (CHOICE, "choices", Choices(0, "2+2", ("3", "4"), 1)),
        ({"context": "", "target": "x"}, "choices", Choices(0, "", ("x",), 0)),
        ({"question": "q", "answer": "a", "other": 1}, "generation", Question(0, "q", "a")),
        ({"text": "long"}, "text", Text(0, "long")),
    ],
)
def test_a_file_has_items_of_one_form(
    tmp_path: Path, row: dict[str, Any], kind: str, item: object
) -> None:
    task = read(tmp_path, lines(row) + "\n")
    assert (task.name, task.kind, task.items) == ("items", kind, [item])


def test_the_first_rows_are_examples_and_not_scored(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "answer": f"a{n}"} for n in range(5)]
    task = read(tmp_path, lines(*rows), few_shot=2, limit=2)
    assert task.examples == [("q0", "a0"), ("q1", "a1")]
    assert [item.id for item in task.items] == [2, 3]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", ": the file has no items"),
        ("\n\n", ": the file has no items"),
        ("{", ", row 1: not JSON; expected one object per line"),
        ("[" * 100_000, ", row 1: not JSON; expected one object per line"),
        ("[]", ", row 1: found list; expected a JSON object"),
        (lines(CHOICE) + "\udcff", ", row 2: not UTF-8 (byte 1)"),
        (
            lines({"prompt": "q"}),
            ", row 1: found 'prompt'; expected the fields of one form: context, choices, label; "
            "context, target; question, answer; text",
        ),
        (lines(CHOICE, {"context": "c", "choices": ["a", "b"]}), ", row 2: label is missing"),
        (lines(CHOICE | {"label": 2}), ", row 1: label is 2, expected 0 to 1"),
        (lines(CHOICE | {"label": -1}), ", row 1: label is -1, expected 0 to 1"),
        (lines(CHOICE | {"label": True}), ", row 1: label is True, expected 0 to 1"),
        (lines(CHOICE | {"label": "1"}), ", row 1: label is '1', expected 0 to 1"),
        (
            lines(CHOICE | {"choices": ["a"]}),
            ", row 1: choices is ['a'], expected a list of 2 to 100",
        ),
        (
            lines(CHOICE | {"choices": "ab"}),
            ", row 1: choices is 'ab', expected a list of 2 to 100",
        ),
        (lines(CHOICE | {"choices": ["a", 4]}), ", row 1: choices is 4, expected text"),
        (lines(CHOICE | {"choices": ["a", " "]}), ", row 1: choices is ' ', expected text"),
        (lines({"question": "q", "answer": None}), ", row 1: answer is None, expected text"),
        (lines({"text": " "}), ", row 1: text is ' ', expected text"),
        ('{"text": "\\ud800"}', ", row 1: text is not UTF-8 (half of a surrogate pair)"),
    ],
)
def test_an_unusable_row_is_named(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(DataError) as raised:
        read(tmp_path, content)
    assert str(raised.value) == f"evaluation.tasks={tmp_path / 'items.jsonl'}{said}"


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("LARGEST_FILE", ": expected at most 20 bytes"),
        ("LONGEST_ROW", ", row 2: expected at most 20 bytes"),
    ],
)
def test_sizes_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, said: str
) -> None:
    monkeypatch.setattr(f"lamina.measure.tasks.items.{limit}", 20)
    with pytest.raises(DataError) as raised:
        read(tmp_path, lines({"text": "short"}, {"text": "x" * 30}))
    assert str(raised.value) == f"evaluation.tasks={tmp_path / 'items.jsonl'}{said}"


def test_examples_must_leave_items(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        read(tmp_path, lines(CHOICE, CHOICE), few_shot=2)
    assert str(raised.value) == (
        f"evaluation.task_settings.few_shot=2: evaluation.tasks={tmp_path / 'items.jsonl'} has 2 "
        "items, which leaves none to score"
    )


def test_a_missing_file_is_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "piqa.jsonl").touch()
    name = tmp_path / "pika.jsonl"
    with pytest.raises(DataError) as raised:
        read_tasks([str(name)], SETTINGS)
    assert str(raised.value) == (f"evaluation.tasks={name}: no such file; did you mean piqa.jsonl?")


@pytest.mark.parametrize(
    ("given", "wrong", "said"),
    [
        (["a.jsonl", "a.jsonl"], "a.jsonl", "a is the name of another task: rename the file"),
        (["a.jsonl", "b/a.jsonl"], "b/a.jsonl", "a is the name of another task: rename the file"),
        (["piqa", "piqa"], "piqa", "piqa is the name of another task: rename the file"),
        (["eval_rows.jsonl"], "eval_rows.jsonl", "eval_rows is the name of the rows of data: re"),
        (["dir.jsonl"], "dir.jsonl", "no such file"),
        (["a" * 300], "a" * 300, "File name too long"),
        (["~nobody-at-all/a.jsonl"], "~nobody-at-all/a.jsonl", "Could not determine home direct"),
    ],
)
def test_a_task_has_a_file_and_a_name_of_its_own(
    given: list[str], wrong: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("b", "dir.jsonl", "piqa"):  # a folder hides no task of the library
        Path(folder).mkdir()
    for name in ("a", "b/a", "eval_rows"):
        Path(f"{name}.jsonl").write_text(lines(CHOICE))
    with pytest.raises(DataError, match=f"^evaluation.tasks={re.escape(wrong)}: {said}"):
        read_tasks(given, SETTINGS)
    with pytest.raises(DataError, match="tasks by name need lm-eval"):
        read_tasks(["piqa"], SETTINGS)


def test_a_name_needs_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamina.measure.tasks.lm_eval_tasks.find_spec", lambda _: None)
    with pytest.raises(DataError) as raised:
        read_tasks(["arc_easy"], SETTINGS)
    assert str(raised.value) == (
        "evaluation.tasks=arc_easy: no such file, and tasks by name need lm-eval: "
        "pip install 'lamina[tasks]', or give a file of items (.jsonl)"
    )
