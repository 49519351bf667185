"""What a sweep saves: one command with twelve jobs, against twelve commands.

    python benchmarks/sweep.py [--jobs 12] [--steps 5] [--json FILE] [--check]

Each job heals the embedded reference model without one layer for a few steps, on the quickstart's
data. Both sides do the same work, each with a cache of its own that is empty at first, and that all
jobs of a side share. The processes of both inherit the number of threads.

Aims: the sweep takes at most 0.6 of the seconds, and every job has the same losses on both sides.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from figures import Aim, at_least, finish, options, show

SECONDS_AIM = 0.6
NAMES = ("one sweep", "single commands")


def job(layer: int, steps: int) -> list[str]:
    """Return the overrides of one job."""
    length = [f"max_steps={steps}", f"eval_steps={steps}", f"save_steps={steps}"]
    return ["experiment=quickstart", "model=dropped", *length, f"model.layer_to_drop={layer}"]


def swept(folder: Path, jobs: int, steps: int) -> list[list[str]]:
    """Return the one command."""
    layers = ",".join(map(str, range(jobs)))
    given = job(0, steps)[:-1]
    return [["--multirun", f"hydra.sweep.dir={folder}", *given, f"model.layer_to_drop={layers}"]]


def single(folder: Path, jobs: int, steps: int) -> list[list[str]]:
    """Return the commands of one job each."""
    return [[f"hydra.run.dir={folder / str(n)}", *job(n, steps)] for n in range(jobs)]


def taken(commands: Sequence[Sequence[str]], cache: Path) -> float:
    """Run the commands one after the other; return the seconds."""
    variables = {**os.environ, "LAMINA_CACHE": str(cache), "HF_DATASETS_CACHE": str(cache)}
    began = time.perf_counter()
    for arguments in commands:
        command = [sys.executable, "-m", "train", *arguments]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"error: {' '.join(command)}: {done.stderr}")
    return time.perf_counter() - began


def results(folder: Path, jobs: int) -> list[list[Any]]:
    """Return what the jobs found: the loss of each step, and those before and after."""
    found = []
    for number in range(jobs):
        content = json.loads((folder / str(number) / "result.json").read_text())
        losses = [content["metrics"][f"{kind}eval_loss"] for kind in ("baseline_", "reduced_", "")]
        found.append([losses, content["history"]])
    return found


def main() -> None:
    """Measure, show, compare with the aims."""
    parser = options("Compare a sweep with single commands.")
    parser.add_argument("--jobs", type=at_least(1), default=12, help="layers dropped, one each")
    parser.add_argument("--steps", type=at_least(1), default=5, help="of each healing")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / side for side in ("sweep", "single")]
        seconds = [
            taken(make(folder, asked.jobs, asked.steps), Path(name) / f"{folder.name}-cache")
            for make, folder in zip((swept, single), folders, strict=True)
        ]
        ours, theirs = (results(folder, asked.jobs) for folder in folders)
    differing = sum(a != b for a, b in zip(ours, theirs, strict=True))
    rows = [[n, f"{s:.1f}", f"{s / asked.jobs:.1f}"] for n, s in zip(NAMES, seconds, strict=True)]
    ratio = seconds[0] / seconds[1]
    notes = f"sweep / single commands: {ratio:.3f}; jobs with other losses: {differing}"
    show(f"{asked.jobs} jobs of {asked.steps} steps", ["", "s", "s a job"], rows, notes)
    reached = [
        Aim(name="seconds of the sweep, of the single commands'", value=ratio, limit=SECONDS_AIM),
        Aim(name="jobs with other losses", value=differing, limit=0),
    ]
    figures = {"seconds": dict(zip(NAMES, seconds, strict=True)), "jobs": asked.jobs}
    finish({**figures, "steps": asked.steps}, reached, asked.json, asked.check)


if __name__ == "__main__":
    main()
