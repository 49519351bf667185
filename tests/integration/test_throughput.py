"""The speed in result.json, against one computed by hand from timestamps and the config."""

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT, environment


def test_tokens_a_second_and_mfu_are_those_of_the_stamps(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "throughput.py"), "--check"]
    done = subprocess.run(
        [*command, "--json", str(figures)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    aims = json.loads(figures.read_text())["aims"]
    assert len(aims) == 6
    assert all(0 <= aim["value"] <= 0.03 for aim in aims)
