"""Messages and tools as data sets have them, read into the one form that chat templates know."""

import json
from typing import Any

from lamina.errors import BadRowError, either

ROLES = {
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
    "function_call": "assistant",
    "observation": "tool",
}
"""What each `role` in messages is in a template."""

SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "function_call": "assistant",
    "observation": "tool",
}
"""What each `from` in conversations is in a template."""

SAYS = {"content", "tool_calls", "function_call"}
"""Fields of which a message has at least one."""


def read_messages(messages: list[Any]) -> list[dict[str, Any]]:
    """Read a list of messages, or of turns with `from` and `value`.

    Raises BadRowError for one that a chat template would drop, or render as something else.
    """
    return [_message(message, number) for number, message in enumerate(messages, 1)]


def read_tools(tools: Any, name: str) -> list[dict[str, Any]] | None:
    """Read the tools in column `name`: a list, or JSON text of one; raises BadRowError."""
    if isinstance(tools, str) and tools.strip():
        tools = _json(tools, f"column {name!r}", "a list of tools")
    if not tools:
        return None
    if not isinstance(tools, list) or not all(_is_named(_function(tool)) for tool in tools):
        raise BadRowError(
            f"column {name!r} holds {excerpt(tools)}; expected a list of objects with name, "
            "description and parameters"
        )
    return [
        tool if "function" in tool else {"type": "function", "function": tool} for tool in tools
    ]


def without_nulls(value: Any) -> Any:
    """Leave out empty fields: Arrow gives every object the fields that any object of a column has.

    The columns themselves stay.
    """
    if isinstance(value, dict):
        return {k: without_nulls(each) for k, each in value.items() if each is not None}
    return list(map(without_nulls, value)) if isinstance(value, list) else value


def _message(message: Any, number: int) -> dict[str, Any]:
    given, speakers, known = message, ROLES, "role"
    if isinstance(message, dict) and message.get("from") is not None:
        rest = {key: each for key, each in message.items() if key not in ("from", "value")}
        given = {**rest, "role": message["from"], "content": message.get("value")}
        speakers, known = SPEAKERS, "from"
    if not isinstance(given, dict) or "role" not in given or not SAYS & given.keys():
        raise BadRowError(
            f"message {number} is {excerpt(message)}; expected an object with role and content"
        )
    calls = _calls(given, number)
    if given["role"] is None or (given.get("content") is None and not calls):
        raise BadRowError(f"message {number} has no role or no content; expected both as text")
    if given["role"] not in list(speakers):  # a list: the role may be any value
        verb = "is from" if known == "from" else "has the role"
        allowed = either(list(speakers))
        raise BadRowError(f"message {number} {verb} {excerpt(given['role'])}; expected {allowed}")
    unset = ("role", "content", "tool_calls", "function_call")
    rest = {key: each for key, each in given.items() if key not in unset and each is not None}
    said = "" if given["role"] == "function_call" else _text(given.get("content"), number)
    read = {"role": speakers[given["role"]], "content": said, **rest}
    return {**read, "tool_calls": calls} if calls else read


def _text(content: Any, number: int) -> str:
    """Return a message's content as text; parts follow one another."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        kind = type(content).__name__
        raise BadRowError(f"message {number} has {kind} as content; expected text")
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise BadRowError(
                f"message {number} has the part {excerpt(part)} in its content; expected text, or "
                "parts of type text"
            )
    return "".join(part["text"] for part in content)


def _calls(message: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """Return a message's tool calls with their arguments as objects."""
    place = f"message {number}"
    found = message.get("tool_calls") or message.get("function_call")
    if message["role"] == "function_call":
        found = message.get("content")
    if isinstance(found, str):
        found = _json(found, place, "a tool call")
    if not found:
        return []
    calls = found if isinstance(found, list) else [found]
    read = []
    for call in calls:
        function = _function(call)
        if not _is_named(function):
            raise BadRowError(
                f"{place} has the tool call {excerpt(call)}; expected an object with name and "
                "arguments"
            )
        arguments = function.get("arguments")
        if isinstance(arguments, str) and arguments.strip():
            arguments = _json(arguments, f"{place}, arguments of {function['name']}", "an object")
        if arguments and not isinstance(arguments, dict):
            raise BadRowError(
                f"{place} has {excerpt(arguments)} as arguments of {function['name']}; expected an "
                "object"
            )
        outer = {k: call[k] for k in ("id", "type") if "function" in call and call.get(k)}
        named = {**function, "arguments": arguments or {}}
        read.append({"type": "function", **outer, "function": named})
    return read


def _function(tool: Any) -> Any:
    """Return what a tool or a call says of its function, with or without its wrapping."""
    return tool.get("function", tool) if isinstance(tool, dict) else None


def _is_named(function: Any) -> bool:
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _json(text: str, place: str, expected: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadRowError(f"{place} is {excerpt(text)}; expected {expected} as JSON") from error


def excerpt(value: Any) -> str:
    """Return a value for an error, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
