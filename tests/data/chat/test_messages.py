"""Messages and tools as data sets have them."""

from typing import Any

import pytest

from lamina.data.chat.messages import read_messages, read_tools, without_nulls
from lamina.errors import BadRowError

CALL = {"type": "function", "function": {"name": "sort", "arguments": {"text": "21"}}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
SCHEMA = {"name": "sort", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": SCHEMA}


@pytest.mark.parametrize(
    ("message", "read"),
    [
        ({"role": "assistant", "content": None, "tool_calls": [CALL]}, CALLED),
        ({"role": "assistant", "tool_calls": [CALL]}, CALLED),
        (
            {"role": "user", "content": "a", "tool_calls": None, "name": None},
            {"role": "user", "content": "a"},
        ),
        (
            {"role": "assistant", "content": "a", "tool_calls": []},
            {"role": "assistant", "content": "a"},
        ),
        ({"role": "assistant", "content": "", "tool_calls": [CALL["function"]]}, CALLED),
        (
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"function": {"name": "sort", "arguments": '{"text": "21"}'}}],
            },
            CALLED,
        ),
        ({"role": "assistant", "content": None, "function_call": CALL["function"]}, CALLED),
        (
            {"role": "function_call", "content": '{"name": "sort", "arguments": {"text": "21"}}'},
            CALLED,
        ),
        (
            {"from": "function_call", "value": '[{"name": "sort", "arguments": {"text": "21"}}]'},
            CALLED,
        ),
        ({"role": "observation", "content": "12"}, {"role": "tool", "content": "12"}),
        ({"from": "observation", "value": "12"}, {"role": "tool", "content": "12"}),
        (
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {"role": "user", "content": "ab"},
        ),
        (
            {"role": "assistant", "content": "a", "thinking": "b"},
            {"role": "assistant", "content": "a", "thinking": "b"},
        ),
    ],
)
def test_a_message_is_read(message: dict[str, Any], read: dict[str, Any]) -> None:
    assert read_messages([message]) == [read]


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": "a.png"}]},
            "message 1 has the part {'type': 'image_url', 'image_url': 'a.png'} in its content; "
            "expected text, or parts of type text",
        ),
        ({"role": "user", "content": {"a": 1}}, "message 1 has dict as content; expected text"),
        (
            {"role": "assistant", "content": None, "tool_calls": []},
            "message 1 has no role or no content; expected both as text",
        ),
        (
            {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]},
            "message 1 has the tool call {'id': '1'}; expected an object with name and arguments",
        ),
        (
            {"role": "function_call", "content": "sort 21"},
            "message 1 is 'sort 21'; expected a tool call as JSON",
        ),
        (
            {"role": "assistant", "tool_calls": [{"name": "sort", "arguments": "21,"}]},
            "message 1, arguments of sort is '21,'; expected an object as JSON",
        ),
        (
            {"role": "assistant", "tool_calls": [{"name": "sort", "arguments": [21]}]},
            "message 1 has [21] as arguments of sort; expected an object",
        ),
        (
            {"role": ["user"], "content": "a"},
            "message 1 has the role ['user']; expected system, developer, user, assistant, tool, "
            "function_call or observation",
        ),
        (
            {"from": "bot", "value": "a"},
            "message 1 is from 'bot'; expected human, user, gpt, assistant, system, tool, "
            "function_call or observation",
        ),
    ],
)
def test_a_bad_message_says_what_was_found(message: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadRowError) as refused:
        read_messages([message])
    assert str(refused.value) == problem


@pytest.mark.parametrize(
    ("tools", "read"),
    [
        (None, None),
        ([], None),
        ("", None),
        ("[]", None),
        ([TOOL], [TOOL]),
        ([SCHEMA], [TOOL]),
        ('[{"name": "sort", "parameters": {"type": "object"}}]', [TOOL]),
    ],
)
def test_tools_are_read(tools: Any, read: list[dict[str, Any]] | None) -> None:
    assert read_tools(tools, "tools") == read


@pytest.mark.parametrize(
    ("tools", "problem"),
    [
        ("sort", "column 'werkzeug' is 'sort'; expected a list of tools as JSON"),
        (
            {"name": "sort"},
            "column 'werkzeug' holds {'name': 'sort'}; expected a list of objects with name, "
            "description and parameters",
        ),
        (
            ["sort"],
            "column 'werkzeug' holds ['sort']; expected a list of objects with name, description "
            "and parameters",
        ),
    ],
)
def test_bad_tools_say_what_was_found(tools: Any, problem: str) -> None:
    with pytest.raises(BadRowError) as refused:
        read_tools(tools, "werkzeug")
    assert str(refused.value) == problem


def test_the_fields_that_arrow_adds_are_left_out() -> None:
    merged = [{"name": "a", "x": 1, "y": None}, {"name": "b", "x": None, "y": [None, 2]}]
    assert without_nulls(merged) == [{"name": "a", "x": 1}, {"name": "b", "y": [None, 2]}]
