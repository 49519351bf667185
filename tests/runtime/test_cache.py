"""Figures that jobs share are computed once; who needs them meanwhile waits, and says so."""

import time
from pathlib import Path
from threading import Event, Thread

import pytest

from lamina.runtime.cache import cached


def test_a_second_user_waits_and_finds_what_the_first_one_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamina.runtime.console.LATE_S", 0.0)
    monkeypatch.setattr("lamina.runtime.console.REFRESH_S", 0.01)
    found, begun = [], Event()

    def second() -> None:
        begun.set()
        with cached(tmp_path, "baseline.json") as entry:
            found.append(entry.content)

    waiting = Thread(target=second)
    with cached(tmp_path, "baseline.json") as entry:
        waiting.start()
        begun.wait()
        time.sleep(0.5)
        assert found == []
        entry.content = {"loss": 2.5}
    waiting.join(10)
    assert found == [{"loss": 2.5}]
    said = "waiting for another process, which computes baseline: 0 s"
    assert said in capsys.readouterr().err


def test_a_damaged_file_is_computed_again(tmp_path: Path) -> None:
    with cached(tmp_path, "scan.json") as entry:
        entry.content = {"loss": 2.5}
    (tmp_path / "scan.json").write_text("{}\n{}")
    with cached(tmp_path, "scan.json") as entry:
        assert entry.content is None
