"""What makes a row unusable: what was found in it, and what is expected."""

from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Who may speak in a chat."""


class BadRowError(Exception):
    """A row cannot be used; the text says what was found and what is expected."""


def check_filled(column: str, value: Any, row: dict[str, Any], kinds: tuple[type, ...]) -> None:
    """Refuse a column that is empty or of another type.

    Args:
        column: Its name in the data set.
        value: What it holds.
        row: The whole row, to say what there is.
        kinds: What it may hold: str, list or both.

    Raises:
        BadRowError: It is missing, empty or blank, or holds something else.
    """
    expected = " or ".join("text" if kind is str else "a list of messages" for kind in kinds)
    blank = isinstance(value, str) and not value.strip()
    if value is None or value == [] or blank:
        found = ", ".join(name for name, content in row.items() if content) or "nothing"
        raise BadRowError(
            f"column {column!r} is empty or missing (found {found}); expected {expected}"
        )
    if not isinstance(value, kinds):
        raise BadRowError(f"column {column!r} holds {type(value).__name__}; expected {expected}")


def check_turns(turns: list[Any]) -> None:
    """Refuse messages that a chat template could not show, or not as they were meant.

    Raises:
        BadRowError: One is no object with a known role and its text.
    """
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            raise BadRowError(
                f"message {number} is {_excerpt(turn)}; expected an object with role and content"
            )
        role, content = turn["role"], turn["content"]
        if role is None or (content is None and not turn.get("tool_calls")):
            raise BadRowError(f"message {number} has no role or no content; expected both as text")
        if role not in ROLES:
            allowed = f"{', '.join(ROLES[:-1])} or {ROLES[-1]}"
            raise BadRowError(f"message {number} has the role {_excerpt(role)}; expected {allowed}")
        if content is not None and not isinstance(content, str):
            raise BadRowError(
                f"message {number} holds {type(content).__name__} as content; expected text"
            )


def check_answered(turns: list[dict[str, Any]], column: str) -> None:
    """Refuse a chat in which nobody answers.

    Raises:
        BadRowError: No message of the assistant has text.
    """
    answers = [turn for turn in turns if turn["role"] == "assistant"]
    if not answers:
        raise BadRowError(
            f"no message has the role assistant in column {column!r}; expected at least one"
        )
    if not any((turn["content"] or "").strip() or turn.get("tool_calls") for turn in answers):
        raise BadRowError(
            f"no message of the assistant has text in column {column!r}; expected one"
        )


def _excerpt(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
