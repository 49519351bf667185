"""make builds its environment with the newest Python that fits, or says what to install."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

PYTHON = """#!/bin/sh
case "$1" in
  -c) exit {unfit} ;;
  *) echo "{name} $*" >> {log}; exit 7 ;;
esac
"""


def make(folder: Path, fit: dict[str, bool], *given: str) -> tuple[str, str]:
    """Run `make install` where the given Pythons are there; return stderr and what was called."""
    commands, log = folder / "bin", folder / "log"
    commands.mkdir()
    log.touch()
    for name in ("make", "sh", "grep", "test"):
        (commands / name).symlink_to(shutil.which(name) or "")
    for name, fits in fit.items():
        (commands / name).write_text(PYTHON.format(name=name, log=log, unfit=int(not fits)))
        (commands / name).chmod(0o755)
    command = ["make", "-C", ROOT, "--no-print-directory", "install", f"VENV={folder / 'venv'}"]
    done = subprocess.run(
        [*command, *given],
        env={"PATH": str(commands)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    return done.stderr, log.read_text()


@pytest.mark.parametrize(
    ("fit", "taken"),
    [
        ({"python3.11": True}, "python3.11"),
        ({"python3.12": True}, "python3.12"),
        ({"python3.11": True, "python3.12": True, "python3.13": True}, "python3.13"),
        ({"python3.11": True, "python3.13": False}, "python3.11"),
        ({"python3": True}, "python3"),
    ],
)
def test_the_newest_python_that_fits_is_taken(
    tmp_path: Path, fit: dict[str, bool], taken: str
) -> None:
    assert make(tmp_path, fit)[1] == f"{taken} -m venv {tmp_path / 'venv'}\n"


def test_without_one_the_error_says_what_to_install(tmp_path: Path) -> None:
    said, called = make(tmp_path, {"python3.13": False, "python3": False})
    assert called == ""
    assert said.splitlines()[0] == (
        "error: no Python 3.11 to 3.13 with venv (tried python3.13 python3.12 python3.11 python3): "
        "install one, for instance with apt-get install python3-venv or brew install python@3.13, "
        "or set PYTHON=PATH"
    )


def test_a_python_may_be_named(tmp_path: Path) -> None:
    fit = {"python3.13": True, "mine": True}
    assert make(tmp_path, fit, "PYTHON=mine")[1] == f"mine -m venv {tmp_path / 'venv'}\n"


def test_the_newest_versions_have_an_environment_of_their_own() -> None:
    """make -n prints what it would run."""
    command = ["make", "-n", "-C", ROOT, "--no-print-directory", "test-newest", "TESTS=tests/data"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "install VENV=.venv-newest CONSTRAINTS=constraints-newest.txt" in done.stdout
    (tests,) = [line for line in done.stdout.splitlines() if "pytest" in line]
    assert tests.endswith("--no-loadscope-reorder tests/data")
    assert ".venv-newest/bin/python -m pytest" in tests
