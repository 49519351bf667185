"""The lamina command finds its commands."""

import sys

import pytest

from lamina.cli import main


def test_help_lists_the_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lamina", "--help"])
    main()
    assert "train" in capsys.readouterr().out


def test_an_unknown_command_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lamina", "prune"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: lamina prune: no such command; give train, scan, shortlist, cut, export, migrate, "
        "show\n"
    )
