"""Tables for notebooks: a pandas DataFrame where pandas is installed, else a list of dicts."""

from collections.abc import Iterable, Mapping
from typing import Any


def frame_or_rows(rows: Iterable[Mapping[str, Any]]) -> Any:
    """Return rows as a pandas DataFrame or, without pandas, as a list of dicts.

    Rows may have different keys: each key is a column, in the order in which it first appears, and
    a value that a row lacks is None in a list and NaN, or None among texts, in a frame.
    """
    given = [dict(row) for row in rows]
    columns = list(dict.fromkeys(key for row in given for key in row))
    filled = [{key: row.get(key) for key in columns} for row in given]
    try:
        import pandas
    except ImportError:
        return filled
    return pandas.DataFrame(filled, columns=columns)
