"""What a sweep saves: one command with twelve jobs, against twelve commands.

    python benchmarks/sweep.py [--jobs 12] [--steps 5] [--rows 100] [--json FILE] [--check]

Each job heals the embedded reference model without one layer for a few steps, on the quickstart's
data, and is evaluated after removal, after healing and from final/. Both sides do the same work,
each with a cache of its own that is empty at first and that all jobs of a side share: so the single
commands, too, tokenize and evaluate the untouched model once. What the sweep saves beyond that is a
fixed time a job, a large share of small jobs only: the last column says how much. The processes of
both sides inherit the number of threads. CPU time is shown, too: other processes touch it less.

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


def overrides(steps: int, rows: int) -> list[str]:
    """Return what all jobs have in common."""
    length = [f"max_steps={steps}", f"eval_steps={steps}", f"save_steps={steps}", "logging_steps=1"]
    return ["experiment=quickstart", "model=dropped", *length, f"generator.eval_rows={rows}"]


def swept(folder: Path, jobs: int, common: Sequence[str]) -> list[list[str]]:
    """Return the one command."""
    layers = ",".join(map(str, range(jobs)))
    return [["--multirun", f"hydra.sweep.dir={folder}", *common, f"model.layer_to_drop={layers}"]]


def single(folder: Path, jobs: int, common: Sequence[str]) -> list[list[str]]:
    """Return the commands of one job each."""
    own = [(f"hydra.run.dir={folder / str(n)}", f"model.layer_to_drop={n}") for n in range(jobs)]
    return [[place, *common, layer] for place, layer in own]


def taken(commands: Sequence[Sequence[str]], cache: Path) -> tuple[float, float]:
    """Run the commands one after the other; return their seconds, and their CPU seconds."""
    variables = {**os.environ, "LAMINA_CACHE": str(cache), "HF_DATASETS_CACHE": str(cache)}
    began, before = time.perf_counter(), os.times()
    for arguments in commands:
        command = [sys.executable, "-m", "train", *arguments]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"error: {' '.join(command)}: {done.stderr}")
    seconds, after = time.perf_counter() - began, os.times()
    user = after.children_user - before.children_user
    return seconds, user + after.children_system - before.children_system


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
    parser.add_argument("--rows", type=at_least(1), default=100, help="of each evaluation")
    asked = parser.parse_args()
    common = overrides(asked.steps, asked.rows)
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / side for side in ("sweep", "single")]
        times = [
            taken(make(folder, asked.jobs, common), Path(name) / f"{folder.name}-cache")
            for make, folder in zip((swept, single), folders, strict=True)
        ]
        ours, theirs = (results(folder, asked.jobs) for folder in folders)
    differing = sum(a != b for a, b in zip(ours, theirs, strict=True))
    (seconds, cpu), (seconds_apart, cpu_apart) = times
    rows = [
        [n, f"{s:.1f}", f"{c:.1f}", f"{s / asked.jobs:.1f}"]
        for n, (s, c) in zip(NAMES, times, strict=True)
    ]
    rows.append(["ratio", f"{seconds / seconds_apart:.3f}", f"{cpu / cpu_apart:.3f}", ""])
    show(
        f"{asked.jobs} jobs of {asked.steps} steps, {asked.rows} rows evaluated",
        ["", "s", "CPU s", "s a job"],
        rows,
        f"jobs with other losses: {differing}",
    )
    reached = [
        Aim(name="ratio of the seconds", value=seconds / seconds_apart, limit=SECONDS_AIM),
        Aim(name="jobs with other losses", value=differing, limit=0),
    ]
    figures = {"seconds": dict(zip(NAMES, times, strict=True)), "overrides": common}
    finish({**figures, "jobs": asked.jobs}, reached, asked.json, asked.check)


if __name__ == "__main__":
    main()
