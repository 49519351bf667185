""".ci/run installs SLURM and Chromium where it can, once, and nowhere else."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

SLURM = ("slurmctld", "slurmd", "munged")
EVERYTHING = (*SLURM, "chromium")
INSTALL = "apt-get install -y -qq --no-install-recommends"
NO_PAGE = "tests/report/page will be skipped: apt-get install chromium would let them run"
SKIPPED = "tests/slurm will be skipped: as root, apt-get install slurm-wlm munge would let them run"

TESTS = [
    "make check",
    "make install-gguf",
    "make install-unsloth VENV=.venv-unsloth",
    "make test",
    "make test-unsloth VENV=.venv-unsloth",
    "make test-lm-eval VENV=.venv-lm-eval",
    "make test-newest TESTS=tests/data tests/depth tests/weights tests/heal",
]
"""What is called once SLURM is there; the second and third run side by side."""


def ci(
    folder: Path, *, there: tuple[str, ...], user: int, works: bool = True
) -> tuple[str, list[str]]:
    """Run .ci/run with a PATH on which each command only notes that it was called."""
    commands = folder / "bin"
    commands.mkdir()
    log = folder / "log"
    log.touch()
    (commands / "dirname").symlink_to(shutil.which("dirname") or "")
    scripts = dict.fromkeys(("make", *there), "")
    scripts["id"] = f"echo {user}"
    made = "; ".join(f"cp {commands}/make {commands}/{name}" for name in EVERYTHING)
    scripts["apt-get"] = f'[ "$1" = update ] || {{ {made}; }}' if works else "exit 100"
    for name, body in scripts.items():
        path = commands / name
        noted = "" if name == "id" else f'echo "{name} $*" >> {log}\n'
        path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{noted}{body}\n")
        path.chmod(0o755)
    bash = shutil.which("bash") or "bash"
    done = subprocess.run(
        [bash, ROOT / ".ci" / "run"],
        env={"PATH": str(commands)},
        capture_output=True,
        text=True,
        check=True,
    )
    called = log.read_text().splitlines()
    called[-5:-3] = sorted(called[-5:-3])
    return done.stdout, called


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    said, called = ci(tmp_path, there=EVERYTHING, user=0)
    assert (said, called) == ("", TESTS)


@pytest.mark.parametrize(
    ("there", "missing"),
    [((), "slurm-wlm munge chromium"), (SLURM, "chromium"), (("chromium",), "slurm-wlm munge")],
)
def test_what_is_missing_is_installed_once(
    tmp_path: Path, there: tuple[str, ...], missing: str
) -> None:
    said, called = ci(tmp_path, there=there, user=0)
    assert called == ["apt-get update -qq", f"{INSTALL} {missing}", *TESTS]
    assert said == f"Installing {missing} for the tests ...\n"


@pytest.mark.parametrize(("user", "calls"), [(1000, []), (0, ["apt-get update -qq"])])
def test_where_it_cannot_be_installed_the_output_says_what_is_skipped(
    tmp_path: Path, user: int, calls: list[str]
) -> None:
    said, called = ci(tmp_path, there=(), user=user, works=False)
    assert called == [*calls, *TESTS]
    assert said.splitlines()[-2:] == [NO_PAGE, SKIPPED]
