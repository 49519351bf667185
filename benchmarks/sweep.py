"""What a sweep saves: one command with twelve jobs.

    python benchmarks/sweep.py [--jobs 12] [--steps 5] [--rows 100] [--json FILE] [--check]

Shows: wall and CPU seconds. Each job heals the embedded reference model without one layer for a few
steps, on the quickstart's data, and is evaluated after removal, after healing and from final/. A
sweep saves a fixed time per job, which is a large share of small jobs only.
Peer: twelve commands of one job each. Each side has one cache, empty at first, for all its jobs, so
the single commands, too, tokenize the rows and evaluate the untouched model once.
Aims: the sweep takes at most 0.6 of the seconds; every job has the same losses on both sides.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from harness.figures import Aim, at_least, finish, options, show
from harness.runs import seconds_of

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


def run_all(commands: Sequence[Sequence[str]], cache: Path) -> None:
    """Run the commands one after the other, with a cache of their own."""
    variables = {**os.environ, "LAMINA_CACHE": str(cache), "HF_DATASETS_CACHE": str(cache)}
    for arguments in commands:
        command = [sys.executable, "-m", "train", *arguments]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"error: {' '.join(command)}: {done.stderr}")


def results(folder: Path, jobs: int) -> list[list[Any]]:
    """Return the jobs' losses: before, after removal and after healing, and of each step."""
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
    given = parser.parse_args()
    common = overrides(given.steps, given.rows)
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / side for side in ("sweep", "single")]
        times = [
            seconds_of(partial(run_all, make(folder, given.jobs, common), Path(f"{folder}-cache")))
            for make, folder in zip((swept, single), folders, strict=True)
        ]
        ours, theirs = (results(folder, given.jobs) for folder in folders)
    differing = sum(a != b for a, b in zip(ours, theirs, strict=True))
    ratio, cpu_ratio = (a / b for a, b in zip(*times, strict=True))
    rows = [
        [n, f"{took.wall:.1f}", f"{took.cpu:.1f}", f"{took.wall / given.jobs:.1f}"]
        for n, took in zip(NAMES, times, strict=True)
    ]
    rows.append(["ratio", f"{ratio:.3f}", f"{cpu_ratio:.3f}", ""])
    show(
        f"{given.jobs} jobs of {given.steps} steps, {given.rows} rows evaluated",
        ["", "s", "CPU s", "s a job"],
        rows,
        f"jobs with other losses: {differing}",
    )
    reached = [
        Aim(name="ratio of the seconds", value=ratio, limit=SECONDS_AIM),
        Aim(name="jobs with other losses", value=differing, limit=0),
    ]
    figures = {"seconds": dict(zip(NAMES, times, strict=True)), "overrides": common}
    finish({**figures, "jobs": given.jobs}, reached, given.json, given.check)


if __name__ == "__main__":
    main()
