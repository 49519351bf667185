"""result.json is whole at every moment, and an earlier result is not lost."""

import json
import os
from pathlib import Path

import pytest

from lamina.errors import ConfigError, OutputError
from lamina.measure.results import Record, read_result
from lamina.runtime.files import write_json


def test_a_completed_run_says_so(tmp_path: Path) -> None:
    record = Record(tmp_path, ["a=1"])
    with record.outcome():
        record.update(model_type="pruned", seed=1)
        assert read_result(tmp_path)["status"] == "running"
        record.measured(eval_loss=1.5)
    result = read_result(tmp_path)
    assert (result["status"], result["error"]) == ("completed", None)
    assert result["metrics"]["eval_loss"] == 1.5
    assert result["overrides"] == ["a=1"]


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError), Record(tmp_path, []).outcome():
        raise ConfigError("no such layer")
    assert read_result(tmp_path)["status"] == "failed"
    assert read_result(tmp_path)["error"] == "no such layer"


def test_a_bug_is_recorded_with_its_kind(tmp_path: Path) -> None:
    with pytest.raises(KeyError), Record(tmp_path, []).outcome():
        raise KeyError("text")
    assert read_result(tmp_path)["error"] == "KeyError: 'text'"


def test_a_refused_second_start_leaves_the_first_result_alone(tmp_path: Path) -> None:
    first = Record(tmp_path, [])
    with first.outcome():
        first.update(model_type="pruned")
    before = (tmp_path / "result.json").read_bytes()
    with pytest.raises(ConfigError), Record(tmp_path, []).outcome():
        raise ConfigError("refused before it began")
    assert (tmp_path / "result.json").read_bytes() == before


def test_a_completed_result_survives_a_failure_to_resume(tmp_path: Path) -> None:
    first = Record(tmp_path, [])
    with first.outcome():
        first.update(model_type="pruned")
    before = read_result(tmp_path)
    second = Record(tmp_path, [])
    second.update(model_type="pruned")
    with pytest.raises(ConfigError), second.outcome():
        raise ConfigError("the data has changed")
    assert read_result(tmp_path) == before


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"loss": [float("nan"), 1.0], "other": float("inf")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"loss": [None, 1.0], "other": None}


def test_a_failed_write_keeps_the_old_file_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "a.json", {"a": 1})

    def full(self: Path, *_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"a\.json cannot be written: No space left on device"):
        write_json(tmp_path / "a.json", {"a": 2})
    monkeypatch.undo()
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
