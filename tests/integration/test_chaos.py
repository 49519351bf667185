"""The benchmarks that kill processes, in their smallest form."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, environment


def checked(tmp_path: Path, name: str, *given: str) -> dict[str, Any]:
    """Run a benchmark that must reach its aims; return its figures."""
    figures = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / name, *given, "--check", "--json", figures],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    content: dict[str, Any] = json.loads(figures.read_text())
    return content


def test_a_sweep_that_is_killed_and_started_again_ends_as_if_undisturbed(tmp_path: Path) -> None:
    found = checked(tmp_path, "chaos.py", "--jobs", "2", "--kills", "3")
    assert found["equal"] == [True, True]
    assert found["undisturbed"]["codes"] == [0]
    assert sum(found["disturbed"]["kills"].values()) == 3
    assert found["disturbed"]["codes"][-1] == 0


def test_a_run_that_is_killed_at_a_write_ends_as_if_undisturbed(tmp_path: Path) -> None:
    found = checked(tmp_path, "faults.py", "--sample", "20")
    assert (found["interrupted"], found["wrong"]) == (20, [])
    seen = {operation.partition(" ")[0] for operation in found["operations"]}
    assert seen == {"open", "rename", "remove", "rmdir", "save", "serialize_file"}
    for name in ("result.json", "eval.jsonl", "trainer_state.json", "optimizer.pt", "train.log"):
        assert any(operation.endswith(f"/{name}") for operation in found["operations"]), name
