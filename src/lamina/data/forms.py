"""The forms that rows come in, told by their columns, and how each is turned into what is trained.

Training knows three: `messages`, `prompt` with `completion`, and `text`. The others become one of
them. Texts that a conversion joins are set apart by a blank line.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lamina.data.rows import BadRowError, check_answered, check_filled, check_turns
from lamina.errors import DataError, nearest

TRAINED: dict[str, tuple[str, ...]] = {
    "assistant": ("messages",),
    "completion": ("prompt", "completion"),
    "all": ("text",),
}
"""What is trained by default in rows that have these columns."""

FORMS: dict[tuple[str, ...], str] = {
    ("messages",): "assistant",
    ("conversations",): "assistant",
    ("prompt", "completion"): "completion",
    ("prompt", "response"): "completion",
    ("instruction", "output"): "completion",
    ("question", "answer"): "completion",
    ("text",): "all",
}
"""The columns of every form, and the key of `TRAINED` that it becomes."""

OPTIONAL: dict[tuple[str, ...], tuple[str, ...]] = {
    ("messages",): ("tools",),
    ("conversations",): ("system", "tools"),
    ("instruction", "output"): ("input",),
}
"""Columns that a form uses where a row has them."""

EXPECTED = ", or ".join(" and ".join(form) for form in FORMS)
"""The columns that a data set may have, said in an error."""

SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
}
"""Roles of the names in a conversation's `from`."""

LISTS = ("messages", "conversations")
"""Columns that hold messages; the others hold text."""

EITHER = ("prompt", "completion", "response")
"""Columns that hold text or messages."""


@dataclass(frozen=True)
class Conversion:
    """Reads rows of one form."""

    form: tuple[str, ...]
    """A key of `FORMS`."""

    own: Mapping[str, str]
    """The data set's name of each column that is not called as in the form."""

    @property
    def trained(self) -> str:
        """Key of `TRAINED` that rows of this form become."""
        return FORMS[self.form]

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that `__call__` fills."""
        return TRAINED[self.trained]

    @property
    def description(self) -> str:
        """The form's columns as the data set calls them."""
        return " and ".join(self.own.get(name, name) for name in self.form)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row in the columns that training knows.

        Raises:
            BadRowError: A column is missing, empty or holds something else.
        """
        values = {}
        for name in self.form:
            column = self.own.get(name, name)
            check_filled(column, row.get(column), row, _kinds(name))
            values[name] = row[column]
        for name in OPTIONAL.get(self.form, ()):
            values[name] = row.get(self.own.get(name, name))
        if self.trained == "assistant":
            return self._chat(values)
        if self.trained == "completion":
            return self._pair(values)
        return values

    def _chat(self, values: dict[str, Any]) -> dict[str, Any]:
        name = self.form[0]
        turns = values[name]
        if name == "conversations":
            turns = [_turn(turn, number) for number, turn in enumerate(turns, 1)]
            if system := values["system"]:
                check_filled(self.own.get("system", "system"), system, values, (str,))
                turns = [{"role": "system", "content": system}, *turns]
        check_turns(turns)
        check_answered(turns, self.own.get(name, name))
        return {"messages": turns, "tools": values["tools"]}

    def _pair(self, values: dict[str, Any]) -> dict[str, Any]:
        prompt, completion = (values[name] for name in self.form)
        if self.form[0] in ("instruction", "question"):
            if given := values.get("input"):
                check_filled(self.own.get("input", "input"), given, values, (str,))
                prompt = f"{prompt}\n\n{given}"
            return {"prompt": f"{prompt}\n\n", "completion": completion}
        names = [self.own.get(name, name) for name in self.form]
        if type(prompt) is not type(completion):
            kinds = ["text" if isinstance(v, str) else "messages" for v in (prompt, completion)]
            raise BadRowError(
                f"column {names[0]!r} holds {kinds[0]} and column {names[1]!r} {kinds[1]}; "
                "expected the same in both"
            )
        if isinstance(prompt, list):
            check_turns(prompt)
            check_turns(completion)
            check_answered(completion, names[1])
        return {"prompt": prompt, "completion": completion}


def conversion_of(columns: Sequence[str], names: Mapping[str, str], place: str) -> Conversion:
    """Choose the form that columns call for; where several would do, it must be said which.

    Args:
        columns: The data set's.
        names: Its own names by those of a form: data.columns. Only forms that use them all count.
        place: Where the columns were found, for an error.

    Raises:
        DataError: No form fits, or several do, or `names` has columns that are not there.
    """
    for name, own in names.items():
        if own not in columns:
            raise DataError(
                f"data.columns.{name}={own}: {place} has no such column{nearest(own, columns)}; "
                f"found columns {', '.join(columns)}"
            )
    present = {*columns, *names}
    fitting = [
        form
        for form in FORMS
        if present.issuperset(form) and {*form, *OPTIONAL.get(form, ())}.issuperset(names)
    ]
    if len(fitting) == 1:
        return Conversion(fitting[0], dict(names))
    found = f"{place}: found columns {', '.join(columns)}"
    if fitting:
        both = ", or ".join(" and ".join(form) for form in fitting)
        chosen = ", ".join(f"{name}: {names.get(name, name)}" for name in fitting[0])
        raise DataError(
            f"{found}, which can be read as {both}: say which, for instance with "
            f"'data.columns={{{chosen}}}'"
        )
    raise DataError(
        f"{found}; expected {EXPECTED}; name yours in data.columns, for instance "
        "'data.columns={prompt: COLUMN, completion: COLUMN}'"
    )


def _kinds(name: str) -> tuple[type, ...]:
    if name in LISTS:
        return (list,)
    return (str, list) if name in EITHER else (str,)


def _turn(turn: Any, number: int) -> Any:
    """Return a conversation's turn as a message; what is neither is left for the checks."""
    if not isinstance(turn, dict) or turn.get("from") is None:
        return turn
    speaker = turn["from"]
    if speaker not in SPEAKERS:
        raise BadRowError(
            f"message {number} is from {str(speaker)[:40]!r}; expected {', '.join(SPEAKERS)}"
        )
    return {"role": SPEAKERS[speaker], "content": turn.get("value")}
