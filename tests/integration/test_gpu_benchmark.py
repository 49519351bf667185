"""The benchmark of the GPU table: its whole matrix, at tiny size, in two slices."""

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT, environment


def measure(folder: Path, *further: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--tiny", "--check"]
    return subprocess.run(
        [*command, "--folder", str(folder), *further],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def test_the_matrix_is_measured_in_slices_and_what_cannot_run_is_listed(tmp_path: Path) -> None:
    first = measure(tmp_path, "--budget", "45")
    assert first.returncode == 1, "cells are left"
    assert "cells are left: run the command again" in first.stdout, first.stderr
    before = json.loads((tmp_path / "tiny" / "gpu.json").read_text())["cells"]
    second = measure(tmp_path, "--budget", "600")
    assert second.returncode == 0, second.stdout + second.stderr
    cells = json.loads((tmp_path / "tiny" / "gpu.json").read_text())["cells"]
    assert len(cells) == 36
    assert 0 < len(before) < 36
    assert before.items() <= cells.items(), "what was measured is not measured again"
    for name, figures in cells.items():
        if name.startswith(("transformers, kernels=none", "plain TRL, kernels=none")):
            assert figures["tokens_per_second"] > 0
            assert figures["peak_memory_bytes"] > 0
        else:
            assert "tokens_per_second" in figures or figures["reason"] in second.stdout
    assert "none is judged here" in second.stdout
