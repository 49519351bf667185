"""Runs what a benchmark compares: its sides in turn, and commands in processes of their own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

Result = TypeVar("Result")


class Seconds(NamedTuple):
    """What child processes took; other processes disturb the CPU seconds less."""

    wall: float
    cpu: float


def in_turn(
    sides: Mapping[str, Callable[[], Result]], rounds: int, describe: Callable[[Result], str]
) -> dict[str, list[Result]]:
    """Run all sides in every round, so that a change in the machine's load meets all of them.

    Every second round runs in reverse order. A first round fills the file cache and is not counted.
    """
    results: dict[str, list[Result]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            result = sides[name]()
            if number > 0:
                results[name].append(result)
                print(f"round {number}, {name}: {describe(result)}")
    return results


def seconds_of(work: Callable[[], object]) -> Seconds:
    """Call a function that waits for child processes; return the time that it and they took."""
    began, before = time.perf_counter(), os.times()
    work()
    wall, after = time.perf_counter() - began, os.times()
    user = after.children_user - before.children_user
    return Seconds(wall, user + after.children_system - before.children_system)


def run_logged(command: Sequence[str], folder: Path, **variables: str) -> None:
    """Run a command in a folder, offline; exit with the end of its output if it fails."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **variables}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as in an ordinary shell
    log = folder / "log"
    with log.open("w") as file:
        done = subprocess.run(command, cwd=folder, env=environment, stdout=file, stderr=file)
    if done.returncode != 0:
        sys.exit(f"error: {' '.join(command)} failed:\n{log.read_text()[-3000:]}")
