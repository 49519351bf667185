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
        "error: lamina prune: no such command; use train, scan, shortlist, evaluate, cut, export, "
        "verify, migrate, show, report, init, clean\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("cut --outptu=x", "cut: unrecognized arguments: --outptu=x; see lamina cut --help"),
        (
            "export run",
            "export: the following arguments are required: --output; see lamina export --help",
        ),
        ("migrate --force=1 a", "migrate: argument --force: ignored explicit argument '1'; see "),
        ("show a b", "show: unrecognized arguments: b; see lamina show --help"),
    ],
)
def test_a_usage_error_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str, said: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["lamina", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: lamina {said}")
