"""How soon the command line answers, against TRL's.

    python benchmarks/startup.py [--runs 5] [--json FILE] [--check]

Shows: wall and CPU seconds of `python -m train --cfg job`, `python -m train --help` and a command
line with six mistakes, all of which it names. Each is a fresh process; all run in turn.
Peer: `trl sft --help` of the same environment.
Aims: median wall time of the first two at most 0.15 of TRL's; all mistakes named within a second;
none of ours imports torch (read from `python -X importtime`).
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median

from harness.figures import Aim, at_least, finish, options, show
from harness.runs import Seconds, in_turn, seconds_of

MISTAKES = "train, six mistakes"
MISTAKES_AIM = 1.0
"""Seconds until all of them are named."""

OURS = {
    "train --cfg job": ["-m", "train", "--cfg", "job"],
    "train --help": ["-m", "train", "--help"],
    MISTAKES: [
        *("-m", "train", "experiment=quickstart", "model=prunned", "learnig_rate=1", "bf16=maybe"),
        *("seed=null", "lora.rank=3", "trainer.args.optim=sdg"),
    ],
}
"""Our commands, as arguments of the interpreter."""

THEIRS = "trl sft --help"
RATIO_AIM = 0.15

Times = Mapping[str, Sequence[Seconds]]
"""By command, one figure per run."""


def commands() -> dict[str, list[str]]:
    """Return every command's name and its arguments."""
    trl = Path(sys.executable).with_name("trl")
    if not trl.is_file():
        sys.exit(f"error: {trl} is missing: use the python of an environment that has trl")
    ours = {name: [sys.executable, *arguments] for name, arguments in OURS.items()}
    return {**ours, THEIRS: [str(trl), "sft", "--help"]}


def run(name: str, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a named command to its end, as an ordinary shell would: bytecode may be written."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    named = done.stderr.count(": no such") + done.stderr.count(": expected")
    if done.returncode != (name == MISTAKES) or (name == MISTAKES and named < 4):
        sys.exit(f"error: {' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done


def imports_torch(name: str, arguments: Sequence[str]) -> bool:
    """Say whether a run of the interpreter with these arguments imports torch."""
    done = run(name, [sys.executable, "-X", "importtime", *arguments])
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "hydra" in imported, "-X importtime did not list the imports"
    return "torch" in imported


def wall(times: Times, name: str) -> float:
    """Return a command's median wall time."""
    return median(seconds.wall for seconds in times[name])


def row(times: Times, torch: Mapping[str, bool], name: str) -> list[str]:
    """Return one line of the table."""
    columns = zip(*times[name], strict=True)
    seconds = [f"{figure(column):.2f}" for column in columns for figure in (min, median)]
    if name == THEIRS:
        return [name, *seconds, "1", "", ""]
    ratio = f"{wall(times, name) / wall(times, THEIRS):.3f}"
    aim = f"{MISTAKES_AIM:g} s" if name == MISTAKES else f"{RATIO_AIM}"
    return [name, *seconds, ratio, aim, "yes" if torch[name] else "no"]


def aims(times: Times, torch: Mapping[str, bool]) -> list[Aim]:
    """Return the figures that have an aim."""
    ratios = {name: wall(times, name) / wall(times, THEIRS) for name in OURS if name != MISTAKES}
    return [
        *(Aim(name=f"{n}: ratio to TRL", value=r, limit=RATIO_AIM) for n, r in ratios.items()),
        Aim(name=f"{MISTAKES}: seconds", value=wall(times, MISTAKES), limit=MISTAKES_AIM),
        *(Aim(name=f"{n}: imports of torch", value=float(torch[n]), limit=0.0) for n in OURS),
    ]


def main() -> None:
    """Time, show, compare with the aims."""
    parser = options("Time the command line's start against TRL's.")
    parser.add_argument("--runs", type=at_least(1), default=5, help="counted runs of each command")
    given = parser.parse_args()
    sides = {
        name: partial(seconds_of, partial(run, name, command))
        for name, command in commands().items()
    }
    times = in_turn(sides, given.runs, lambda took: f"{took.wall:.2f} s")
    torch = {name: imports_torch(name, arguments) for name, arguments in OURS.items()}
    show(
        f"Start of the command line, {given.runs} runs each, seconds",
        ["command", "min", "median", "CPU min", "CPU median", "ratio", "aim", "imports torch"],
        [row(times, torch, name) for name in times],
        "ratio: of the median wall times, to TRL's",
    )
    seconds = {
        name: {"wall": [run.wall for run in runs], "cpu": [run.cpu for run in runs]}
        for name, runs in times.items()
    }
    figures = {"seconds": seconds, "imports_torch": torch}
    finish(figures, aims(times, torch), given.json, given.check)


if __name__ == "__main__":
    main()
