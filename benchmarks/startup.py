"""How soon the command line answers, in proportion to TRL's.

    python benchmarks/startup.py [--runs 5] [--json FILE] [--check]

Times `python -m train --cfg job`, `python -m train --help` and a command line with six mistakes,
all of which are named, against `trl sft --help` of the same environment: each a fresh process, in
turn, so that a change of the machine's load meets all four.
Every command is run once before, uncounted, which fills the file cache and writes bytecode. CPU
time, the child's user and system time together, is shown as well: other processes touch it less.

Aims: the median wall time of the first two is at most 0.15 of TRL's, that of the mistakes at most a
second, and none of ours imports torch (read from `python -X importtime`).
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from figures import Aim, at_least, finish, options, show

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


@dataclass
class Times:
    """Seconds that one command took, a figure a run."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def commands() -> dict[str, list[str]]:
    """Return every command's name and its arguments."""
    trl = Path(sys.executable).with_name("trl")
    if not trl.is_file():
        sys.exit(
            f"error: {trl} is missing: run this with the python of the environment that has trl"
        )
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


def time_in_turn(runs: int) -> dict[str, Times]:
    """Run all commands in turn, several times over."""
    times = {name: Times() for name in commands()}
    for number in range(runs + 1):
        for name, command in commands().items():
            started, before = time.perf_counter(), os.times()
            run(name, command)
            wall, after = time.perf_counter() - started, os.times()
            if number == 0:
                continue
            times[name].wall.append(wall)
            children = (after.children_user + after.children_system) - (
                before.children_user + before.children_system
            )
            times[name].cpu.append(children)
    return times


def imports_torch(name: str, arguments: Sequence[str]) -> bool:
    """Say whether a run of the interpreter with these arguments imports torch."""
    done = run(name, [sys.executable, "-X", "importtime", *arguments])
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "hydra" in imported, "-X importtime did not list the imports"
    return "torch" in imported


def ratio(times: Mapping[str, Times], name: str) -> float:
    """Return a command's median wall time in proportion to TRL's."""
    return median(times[name].wall) / median(times[THEIRS].wall)


def row(times: Mapping[str, Times], torch: Mapping[str, bool], name: str) -> list[str]:
    """Return one line of the table."""
    own = times[name]
    seconds = [f"{f(x):.2f}" for x in (own.wall, own.cpu) for f in (min, median)]
    if name == THEIRS:
        return [name, *seconds, "1", "", ""]
    imported = "yes" if torch[name] else "no"
    aim = f"{MISTAKES_AIM:g} s" if name == MISTAKES else f"{RATIO_AIM}"
    return [name, *seconds, f"{ratio(times, name):.3f}", aim, imported]


def main() -> None:
    """Time, show, compare with the aims."""
    parser = options("Time the command line's start against TRL's.")
    parser.add_argument("--runs", type=at_least(1), default=5, help="counted runs of each command")
    asked = parser.parse_args()
    times = time_in_turn(asked.runs)
    torch = {name: imports_torch(name, arguments) for name, arguments in OURS.items()}
    show(
        f"Start of the command line, {asked.runs} runs each, seconds",
        ["command", "min", "median", "CPU min", "CPU median", "ratio", "aim", "imports torch"],
        [row(times, torch, name) for name in times],
        "ratio: of the median wall times, to TRL's",
    )
    late = median(times[MISTAKES].wall)
    aims = [
        Aim(name=f"{name}: ratio to TRL", value=ratio(times, name), limit=RATIO_AIM)
        for name in OURS
        if name != MISTAKES
    ]
    aims += [Aim(name=f"{MISTAKES}: seconds", value=late, limit=MISTAKES_AIM)]
    aims += [Aim(name=f"{n}: imports of torch", value=float(torch[n]), limit=0.0) for n in OURS]
    seconds = {name: {"wall": own.wall, "cpu": own.cpu} for name, own in times.items()}
    finish({"seconds": seconds, "imports_torch": torch}, aims, asked.json, asked.check)


if __name__ == "__main__":
    main()
