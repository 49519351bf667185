"""Tables for notebooks, with pandas and without."""

import sys

import pandas
import pytest

from lamina.report.frames import frame_or_rows

ROWS = [{"layer": 0, "loss": 1.5}, {"layer": 1, "name": "b"}]


def test_pandas_gets_a_frame_with_every_column() -> None:
    frame = frame_or_rows(ROWS)
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == ["layer", "loss", "name"]
    assert frame["layer"].tolist() == [0, 1]
    assert frame["loss"].isna().tolist() == [False, True]
    assert len(frame_or_rows([])) == 0


def test_without_pandas_rows_stay_dicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert frame_or_rows(ROWS) == [
        {"layer": 0, "loss": 1.5, "name": None},
        {"layer": 1, "loss": None, "name": "b"},
    ]
