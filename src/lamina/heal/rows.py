"""The forms that rows may have, and what makes a row unusable."""

from collections.abc import Sequence
from typing import Any

from lamina.errors import DataError
from lamina.heal.data import Split

EXPECTED = "messages, or prompt and completion, or text"
"""The columns that a data set may have, said in an error."""

FORMS: dict[str, tuple[str, ...]] = {
    "assistant": ("messages",),
    "completion": ("prompt", "completion"),
    "all": ("text",),
}
"""What is trained by default in rows that have these columns, first match first."""


KINDS: dict[str, tuple[type, ...]] = {
    "messages": (list,),
    "prompt": (str, list),
    "completion": (str, list),
    "text": (str,),
}
"""What a column may hold; a prompt and its completion can be text or messages."""


def form_of(split: Split) -> str:
    """Return the key of `FORMS` that a split's columns call for."""
    if len(split.rows) == 0:
        raise DataError(f"{split.origin}: no rows")
    columns = set(split.rows.column_names)
    for name, needed in FORMS.items():
        if columns.issuperset(needed):
            return name
    found = ", ".join(split.rows.column_names)
    raise DataError(f"{split.origin}, row 1: found columns {found}; expected {EXPECTED}")


def problem_of(row: dict[str, Any], columns: Sequence[str]) -> str | None:
    """Say what makes a row unusable: what was found and what is expected."""
    for column in columns:
        value = row.get(column)
        if not value:
            found = ", ".join(name for name, content in row.items() if content) or "nothing"
            return f"column {column!r} is empty or missing (found {found}); expected {EXPECTED}"
        if not isinstance(value, KINDS[column]):
            kind = "a list of messages" if column == "messages" else "text"
            return f"column {column!r} holds {type(value).__name__}; expected {kind}"
    turns = row.get("messages") if columns == ("messages",) else None
    for number, turn in enumerate(turns or (), 1):
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            return f"message {number} is {turn!r}; expected an object with role and content"
        if not isinstance(turn["role"], str) or turn["content"] is None:
            return f"message {number} has no role or no content; expected both as text"
    if turns and not any(turn["role"] == "assistant" for turn in turns):
        return "no message has the role assistant; expected at least one"
    return None
