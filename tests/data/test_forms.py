"""Forms of rows: how each is converted, and how rows of no form are reported."""

import re
from typing import Any

import pytest

from lamina.data.forms import conversion_of
from lamina.errors import BadRowError, DataError

CHAT = [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}]
SAID = [{"from": "human", "value": "2+2"}, {"from": "gpt", "value": "4"}]
PAIR = {"prompt": "2+2", "completion": "4"}
APART = {"prompt": "2+2\n\n", "completion": "4"}
SYSTEM = {"role": "system", "content": "Count."}


@pytest.mark.parametrize(
    ("row", "read"),
    [
        ({"messages": CHAT}, {"messages": CHAT, "tools": None}),
        ({"messages": CHAT, "tools": []}, {"messages": CHAT, "tools": None}),
        ({"conversations": SAID}, {"messages": CHAT, "tools": None}),
        ({"conversations": CHAT}, {"messages": CHAT, "tools": None}),
        (
            {"conversations": SAID, "system": "Count."},
            {"messages": [SYSTEM, *CHAT], "tools": None},
        ),
        (PAIR, PAIR),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, None),
        ({"prompt": "2+2", "response": "4"}, PAIR),
        ({"instruction": "2+2", "output": "4"}, APART),
        ({"instruction": "2+2", "input": "", "output": "4"}, APART),
        ({"instruction": "2+2", "input": " \n", "output": "4"}, APART),
        (
            {"instruction": "Add.", "input": "2+2", "output": "4"},
            {"prompt": "Add.\n\n2+2\n\n", "completion": "4"},
        ),
        ({"question": "2+2", "answer": "4"}, APART),
        ({"text": "2+2"}, {"text": "2+2"}),
    ],
)
def test_a_form_is_read(row: dict[str, Any], read: dict[str, Any] | None) -> None:
    assert conversion_of(["id", *row], {}, "rows, row 1")(row) == (read or row)


@pytest.mark.parametrize(
    ("names", "row", "read"),
    [
        ({"prompt": "frage", "completion": "antwort"}, {"frage": "2+2", "antwort": "4"}, PAIR),
        ({"completion": "antwort"}, {"prompt": "2+2", "antwort": "4"}, PAIR),
        ({"text": "body"}, {"body": "2+2"}, {"text": "2+2"}),
        ({"messages": "dialog"}, {"dialog": CHAT}, {"messages": CHAT, "tools": None}),
        ({"conversations": "messages"}, {"messages": SAID}, {"messages": CHAT, "tools": None}),
        ({"text": "text"}, {"text": "2+2", "messages": CHAT}, {"text": "2+2"}),
        ({"output": "out", "instruction": "ask"}, {"ask": "2+2", "out": "4"}, APART),
    ],
)
def test_columns_can_be_renamed(
    names: dict[str, str], row: dict[str, Any], read: dict[str, Any]
) -> None:
    assert conversion_of(list(row), names, "rows, row 1")(row) == read


FORMS = (
    "messages, or conversations, or prompt and completion, or prompt and response, or instruction "
    "and output, or question and answer, or text"
)


@pytest.mark.parametrize(
    ("columns", "names", "message"),
    [
        (
            "frage antwort",
            {},
            f"a.csv, row 1: found columns frage, antwort; expected {FORMS}; name yours in "
            "data.columns, for instance 'data.columns={prompt: COLUMN, completion: COLUMN}'",
        ),
        (
            "text messages",
            {},
            "a.csv, row 1: found columns text, messages, which fit messages, or text: "
            "choose one, for instance with 'data.columns={messages: messages}'",
        ),
        (
            "prompt answer reply",
            {"completion": "replay"},
            "data.columns.completion=replay: a.csv, row 1 has no such column; did you mean reply?; "
            "found columns prompt, answer, reply",
        ),
    ],
)
def test_columns_that_fit_no_form_are_reported(
    columns: str, names: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError) as refused:
        conversion_of(columns.split(), names, "a.csv, row 1")
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"messages": CHAT, "rejected": CHAT}, "messages"),
        ({"messages": CHAT, "chosen": CHAT, "rejected": CHAT}, "messages"),
        ({"messages": CHAT, "rejected_response": "5"}, "messages"),
        ({"conversations": SAID, "chosen": SAID[1], "rejected": SAID[1]}, "conversations"),
        ({"instruction": "2+2", "output": "4", "rejected": "5"}, "instruction and output"),
        (
            {"prompt": "2+2", "completion": "4", "non_preferred_output": "5"},
            "prompt and completion",
        ),
    ],
)
def test_preferences_are_not_taken_for_answers(row: dict[str, Any], form: str) -> None:
    """Rows for DPO name the columns to train, or are refused."""
    names = {column: column for column in form.split(" and ")}
    given = ", ".join(f"{column}: {column}" for column in names)
    worse = next(column for column in row if column.startswith(("rejected", "non_")))
    with pytest.raises(DataError) as refused:
        conversion_of(list(row), {}, "a.csv, row 1")
    assert str(refused.value) == (
        f"a.csv, row 1: found columns {', '.join(row)}; with {worse}, they are preferences (DPO), "
        f"which are not trained on; to train on {form} alone, set 'data.columns={{{given}}}'"
    )
    plain = {column: row[column] for column in names}
    read = conversion_of(list(row), names, "a.csv, row 1")(row)
    assert read == conversion_of(list(plain), {}, "a.csv, row 1")(plain)


@pytest.mark.parametrize("row", [{"messages": CHAT}, {"conversations": SAID}, PAIR])
@pytest.mark.parametrize("column", ["label", "kto_tag"])
def test_an_answer_that_is_called_bad_is_not_trained(row: dict[str, Any], column: str) -> None:
    """Rows for KTO, whose labels a CSV file holds as text."""
    conversion = conversion_of([*row, column], {}, "a.csv, row 1")
    for good in (True, "True", None, 3, "maths"):
        assert conversion({**row, column: good}) == conversion(row)
    for bad in (False, "False", "false"):
        with pytest.raises(BadRowError) as refused:
            conversion({**row, column: bad})
        assert str(refused.value) == (
            f"column '{column}' is false, as beside a bad answer (KTO), which training would "
            "teach; expected good answers alone (data.on_bad_row=skip leaves out the others)"
        )


def test_a_label_that_is_trained_or_beside_plain_text_is_no_judgement() -> None:
    row = {"text": "2+2", "label": False}
    assert conversion_of(list(row), {}, "a.csv, row 1")(row) == {"text": "2+2"}
    answer = {"prompt": "2+2=5?", "label": "false"}
    names = {"prompt": "prompt", "completion": "label"}
    read = {"prompt": "2+2=5?", "completion": "false"}
    assert conversion_of(list(answer), names, "a.csv, row 1")(answer) == read


def test_an_answer_may_be_a_tool_call_alone() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    chat = [CHAT[0], {"role": "assistant", "content": "", "tool_calls": [call]}]
    assert conversion_of(["messages"], {}, "rows, row 1")({"messages": chat})["messages"] == chat


NO_ROLE = {"role": "narrator", "content": "a"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"text": " \n"},
            "column 'text' is empty or missing (found text); expected text",
        ),
        ({"prompt": "a", "completion": ""}, "column 'completion' is empty or missing (found promp"),
        ({"question": "a", "answer": 72}, "column 'answer' holds int; expected text"),
        ({"messages": "a"}, "column 'messages' holds str; expected a list of messages"),
        (
            {"prompt": "a", "completion": CHAT[1:]},
            "column 'prompt' holds text and column 'completion' messages; expected the same in bo",
        ),
        (
            {"messages": [NO_ROLE, *CHAT]},
            "message 1 has the role 'narrator'; expected system, developer, user, assistant, tool",
        ),
        (
            {"conversations": [{"from": "narrator", "value": "a"}]},
            "message 1 is from 'narrator'; expected human, user, gpt, assistant, system, tool",
        ),
        ({"messages": ["a"]}, "message 1 is 'a'; expected an object with role and content"),
        ({"messages": CHAT[:1]}, "no message in column 'messages' has the role assistant; expec"),
        (
            {"messages": [CHAT[0], {"role": "assistant", "content": " "}]},
            "no assistant message in column 'messages' has text; expected at least one",
        ),
        (
            {"messages": [*CHAT, {"role": "user", "content": ["a"]}]},
            "message 3 has the part 'a' in its content; expected text, or parts of type text",
        ),
        ({"instruction": "a", "input": 3, "output": "b"}, "column 'input' holds int; expected te"),
    ],
)
def test_a_bad_row_says_what_was_found(row: dict[str, Any], message: str) -> None:
    conversion = conversion_of(list(row), {}, "a.csv, row 1")
    with pytest.raises(BadRowError, match=f"^{re.escape(message)}"):
        conversion(row)
