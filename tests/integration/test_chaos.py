"""The benchmark that kills a sweep's processes, in its smallest form."""

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT, environment


def test_a_sweep_that_is_killed_and_started_again_ends_as_if_undisturbed(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    given = ["--jobs", "2", "--kills", "3", "--check", "--json", str(figures)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "chaos.py"), *given],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text())
    assert found["equal"] == [True, True]
    assert found["undisturbed"]["codes"] == [0]
    assert sum(found["disturbed"]["kills"].values()) == 3
    assert found["disturbed"]["codes"][-1] == 0
