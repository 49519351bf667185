"""Forms of rows: recognised by their columns, checked, and converted to the trained columns.

Training reads `messages`, `prompt` with `completion`, or `text`; every other form becomes one of
them. A blank line separates texts that a conversion joins.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lamina.data.chat.messages import read_messages, read_tools
from lamina.errors import BadRowError, DataError, did_you_mean

TRAINED: dict[str, tuple[str, ...]] = {
    "assistant": ("messages",),
    "completion": ("prompt", "completion"),
    "all": ("text",),
}
"""The trained columns, by what data.loss_on=auto trains in them."""

FORMS: dict[tuple[str, ...], str] = {
    ("messages",): "assistant",
    ("conversations",): "assistant",
    ("prompt", "completion"): "completion",
    ("prompt", "response"): "completion",
    ("instruction", "output"): "completion",
    ("question", "answer"): "completion",
    ("text",): "all",
}
"""Each form's columns, and the key of `TRAINED` that it is converted to."""

OPTIONAL: dict[tuple[str, ...], tuple[str, ...]] = {
    ("messages",): ("tools",),
    ("conversations",): ("system", "tools"),
    ("instruction", "output"): ("input",),
}
"""Columns that a form uses if a row has them."""

EXPECTED = ", or ".join(" and ".join(form) for form in FORMS)

TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("messages", "conversations"), (list,)),
    **dict.fromkeys(("prompt", "completion", "response"), (str, list)),
}
"""Types of the columns of messages, and of text or messages; all others hold text."""

WORSE = ("rejected", "non_preferred")
"""Beginnings of names of columns with the worse of two answers, as in DPO."""

JUDGED = ("label", "kto_tag")
"""Columns that are false beside a bad answer, as in KTO."""


@dataclass(frozen=True)
class Conversion:
    """Converts rows of one form."""

    form: tuple[str, ...]
    """A key of `FORMS`."""
    names: Mapping[str, str]
    """data.columns: the data set's names of columns that it calls otherwise than the form."""

    @property
    def trained(self) -> str:
        """Key of `TRAINED`."""
        return FORMS[self.form]

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of a converted row."""
        return TRAINED[self.trained]

    @property
    def description(self) -> str:
        """The form's columns under the data set's names."""
        return " and ".join(map(self._name, self.form))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Convert a row; raises BadRowError if a column is missing, empty or of the wrong type."""
        values = {}
        if self.form != ("text",):
            _refuse_bad_answer(row, self.names)
        for column in self.form:
            name = self._name(column)
            _check_filled(name, row.get(name), row, TYPES.get(column, (str,)))
            values[column] = row[name]
        for column in OPTIONAL.get(self.form, ()):
            value = row.get(self._name(column))
            values[column] = None if _is_empty(value) else value
        if self.trained == "assistant":
            return self._chat(values)
        if self.trained == "completion":
            return self._pair(values)
        return values

    def _name(self, column: str) -> str:
        return self.names.get(column, column)

    def _chat(self, values: dict[str, Any]) -> dict[str, Any]:
        column = self.form[0]
        messages = read_messages(values[column])
        if system := values.get("system"):
            _check_filled(self._name("system"), system, values, (str,))
            messages = [{"role": "system", "content": system}, *messages]
        _check_answered(messages, self._name(column))
        return {"messages": messages, "tools": read_tools(values["tools"], self._name("tools"))}

    def _pair(self, values: dict[str, Any]) -> dict[str, Any]:
        prompt, completion = (values[column] for column in self.form)
        if self.form[0] in ("instruction", "question"):
            if given := values.get("input"):
                _check_filled(self._name("input"), given, values, (str,))
                prompt = f"{prompt}\n\n{given}"
            return {"prompt": f"{prompt}\n\n", "completion": completion}
        names = list(map(self._name, self.form))
        if type(prompt) is not type(completion):
            types = ["text" if isinstance(v, str) else "messages" for v in (prompt, completion)]
            raise BadRowError(
                f"column {names[0]!r} holds {types[0]} and column {names[1]!r} {types[1]}; "
                "expected the same in both"
            )
        if isinstance(prompt, list):
            prompt, completion = read_messages(prompt), read_messages(completion)
            _check_answered(completion, names[1])
        return {"prompt": prompt, "completion": completion}


def conversion_of(columns: Sequence[str], names: Mapping[str, str], place: str) -> Conversion:
    """Recognise the one form that fits a data set's columns and uses all `names`, data.columns.

    `place` is where the columns were found. Raises DataError if no form fits, or several do,
    or a column of `names` does not exist.
    """
    for column, name in names.items():
        if name not in columns:
            raise DataError(
                f"data.columns.{column}={name}: {place} has no such column"
                f"{did_you_mean(name, columns)}; found columns {', '.join(columns)}"
            )
    present = {*columns, *names}
    fitting = [
        form
        for form in FORMS
        if present.issuperset(form) and {*form, *OPTIONAL.get(form, ())}.issuperset(names)
    ]
    found = f"{place}: found columns {', '.join(columns)}"
    worse = [column for column in columns if column.startswith(WORSE)]
    if fitting and worse and not names.keys() & {*fitting[0]}:
        form = ", ".join(f"{column}: {column}" for column in fitting[0])
        raise DataError(
            f"{found}; with {worse[0]}, they are preferences (DPO), which are not trained on; to "
            f"train on {' and '.join(fitting[0])} alone, set 'data.columns={{{form}}}'"
        )
    if len(fitting) == 1:
        return Conversion(fitting[0], dict(names))
    if fitting:
        choices = ", or ".join(" and ".join(form) for form in fitting)
        first = ", ".join(f"{column}: {names.get(column, column)}" for column in fitting[0])
        raise DataError(
            f"{found}, which fit {choices}: choose one, for instance with "
            f"'data.columns={{{first}}}'"
        )
    raise DataError(
        f"{found}; expected {EXPECTED}; name yours in data.columns, for instance "
        "'data.columns={prompt: COLUMN, completion: COLUMN}'"
    )


def _refuse_bad_answer(row: dict[str, Any], names: Mapping[str, str]) -> None:
    for name in JUDGED:
        if str(row.get(name)).lower() == "false" and name not in names.values():
            raise BadRowError(
                f"column {name!r} is false, as beside a bad answer (KTO), which training would "
                "teach; expected good answers alone (data.on_bad_row=skip leaves out the others)"
            )


def _is_empty(value: Any) -> bool:
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def _check_filled(name: str, value: Any, row: dict[str, Any], types: tuple[type, ...]) -> None:
    expected = " or ".join("text" if each is str else "a list of messages" for each in types)
    if _is_empty(value):
        found = ", ".join(column for column, content in row.items() if content) or "nothing"
        raise BadRowError(
            f"column {name!r} is empty or missing (found {found}); expected {expected}"
        )
    if not isinstance(value, types):
        raise BadRowError(f"column {name!r} holds {type(value).__name__}; expected {expected}")


def _check_answered(messages: list[dict[str, Any]], name: str) -> None:
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise BadRowError(
            f"no message in column {name!r} has the role assistant; expected at least one"
        )
    if not any(each["content"].strip() or each.get("tool_calls") for each in answers):
        raise BadRowError(
            f"no assistant message in column {name!r} has text; expected at least one"
        )
