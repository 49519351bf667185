"""Whether a sweep whose processes are killed again and again ends like an undisturbed one.

    python benchmarks/chaos.py [--jobs 12] [--kills 20] [--pause 8] [--seed 0] [--json FILE]
        [--check] [OVERRIDE ...]

Shows: every few seconds SIGKILL ends one process of a sweep; each time the command ends it is
started again, until its exit code is 0. Each job heals the embedded reference model without one
layer for a few steps, with a checkpoint every second one, and with data workers, which are
processes, too. Overrides make another sweep, of --jobs jobs:

    python benchmarks/chaos.py --jobs 9 'experiment=glob(heal_*)' budget.tokens=null max_steps=20

    --seed decides the pauses and the victims. A start that adds no checkpoint makes the following
    pauses longer; jobs that complete before their share of the kills make them shorter. A kill
    waits for the jobs before its own, so that the kills cover the whole sweep.
Peer: the same sweep, undisturbed, in a folder and with caches of its own.
Aims: as many kills as --kills; every job completed with the same loss of each step, and the same
losses of the untouched model, after removal and after healing.
"""

import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from harness.figures import Aim, at_least, finish, options, show
from sweep import results

from lamina.measure.results import read_result

LAYERS = 12
"""Of the reference model."""

JOB = (
    "experiment=quickstart",
    "model=dropped",
    "generator.train_rows=400",
    "generator.eval_rows=40",
    "max_steps=12",
    "eval_steps=2",
    "save_steps=2",
    "logging_steps=1",
    "evaluation.num_samples=1",
    "evaluation.max_new_tokens=4",
    "+trainer.args.dataloader_num_workers=1",
)


@dataclass
class Tally:
    """What happened to a sweep."""

    starts: int = 0
    kills: dict[str, int] = field(default_factory=lambda: {"command": 0, "data worker": 0})
    """By the kind of process."""

    jobs: list[int] = field(default_factory=list)
    """How many jobs were completed at each kill."""

    codes: list[int] = field(default_factory=list)
    """Exit code of each start; -9 is a kill."""

    seconds: float = 0.0

    @property
    def killed(self) -> int:
        """Kills altogether."""
        return sum(self.kills.values())


@dataclass(kw_only=True)
class Chaos:
    """One sweep, and the killing of its processes."""

    folder: Path
    """Of the sweep."""

    cache: Path
    """The sweep's own cache."""

    jobs: int
    kills: int
    """After that many the sweep is left alone."""

    overrides: Sequence[str]
    """What the sweep is."""

    rng: random.Random
    pause: float
    """Seconds between two kills on average, at first."""

    tally: Tally = field(default_factory=Tally)

    def run(self) -> Tally:
        """Start the command until it succeeds."""
        began = time.monotonic()
        while self.tally.codes[-1:] != [0]:
            if self.tally.starts > self.kills + self.jobs:
                *_, last = self.log.read_text().splitlines() or [""]
                sys.exit(f"error: not completed after {self.tally.starts} starts; last: {last}")
            before = self.progress()
            self.tally.starts += 1
            with self.started() as process:
                while process.poll() is None:
                    self.disturb(process)
            self.tally.codes.append(process.returncode)
            self.pause *= 1.25 if self.progress() == before else 0.95
            self.tell(time.monotonic() - began)
        self.tally.seconds = time.monotonic() - began
        return self.tally

    def started(self) -> subprocess.Popen[bytes]:
        """Start the command."""
        caches = {"LAMINA_CACHE": str(self.cache), "HF_DATASETS_CACHE": str(self.cache / "data")}
        command = [sys.executable, "-m", "train", "--multirun", f"hydra.sweep.dir={self.folder}"]
        with self.log.open("ab") as file:
            return subprocess.Popen(
                [*command, *self.overrides],
                env={**os.environ, **caches},
                stdout=file,
                stderr=file,
            )

    def disturb(self, process: subprocess.Popen[bytes]) -> None:
        """Wait a while, then kill one of the command's processes unless it has ended."""
        while not self.is_due():
            if process.poll() is not None:
                return
            time.sleep(0.05)
        now = time.monotonic()
        soon, late = (now + share * self.pause for share in self.shares())
        while time.monotonic() < (soon if self.ahead() else late):
            if process.poll() is not None:
                return
            time.sleep(0.05)
        try:
            known = psutil.Process(process.pid)
            victim = self.rng.choice([known, *known.children(recursive=True)])
            victim.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            return  # it has just ended by itself
        kind = "command" if victim.pid == process.pid else "data worker"
        self.tally.kills[kind] += 1
        self.tally.jobs.append(self.completed())
        if kind == "command":
            process.wait()

    def shares(self) -> tuple[float, float]:
        """Draw the share of a pause to wait: if the sweep is ahead of its kills, and otherwise."""
        return self.rng.uniform(0.1, 0.4), self.rng.uniform(0.2, 1.8)

    def is_due(self) -> bool:
        """Say whether the jobs before the next kill's are completed: each gets its share."""
        done = self.tally.killed
        return done < self.kills and self.completed() >= done * self.jobs // self.kills

    def ahead(self) -> bool:
        """Say whether jobs outpace kills: all kills are due before the last job."""
        return self.completed() * self.kills > self.tally.killed * (self.jobs - 1)

    def completed(self) -> int:
        """Count the completed jobs."""
        found = (read_result(self.folder / str(number)) for number in range(self.jobs))
        return sum(result is not None and result["status"] == "completed" for result in found)

    def summed_up(self) -> int:
        """Count the completed jobs in report.csv."""
        with (self.folder / "report.csv").open() as file:
            return sum(row["status"] == "completed" for row in csv.DictReader(file))

    def progress(self) -> tuple[int, int]:
        """Return the completed jobs and the sum of all checkpoints' steps."""
        paths = self.folder.glob("*/checkpoints/*/checkpoint-*/trainer_state.json")
        return self.completed(), sum(int(path.parent.name.rpartition("-")[2]) for path in paths)

    def tell(self, seconds: float) -> None:
        """Print the progress."""
        kills = f"{self.tally.killed} of {self.kills} kills"
        done = f"{self.completed()} of {self.jobs} jobs completed"
        print(f"{seconds:4.0f} s: start {self.tally.starts} ended, {kills}, {done}", flush=True)

    @property
    def log(self) -> Path:
        """Output of the command, of all starts."""
        return self.folder.with_suffix(".log")


def row(name: str, tally: Tally, jobs: int, equal: str) -> list[str]:
    """Return one line of the table."""
    kills = [str(tally.kills[kind]) for kind in ("command", "data worker")]
    return [name, f"{tally.seconds:.0f}", str(tally.starts), *kills, str(jobs), equal]


def equal_jobs(folders: Sequence[Path], jobs: int) -> list[bool]:
    """Say for each job whether both sweeps found the same."""
    ours, theirs = (results(folder, jobs) for folder in folders)
    return [a == b for a, b in zip(ours, theirs, strict=True)]


def main() -> None:
    """Run both sweeps, show, compare with the aims."""
    parser = options("Kill processes of a sweep, and compare its results with undisturbed ones.")
    parser.add_argument(
        "--jobs", type=int, choices=range(1, LAYERS + 1), default=LAYERS, help="of the sweep"
    )
    parser.add_argument("overrides", nargs="*", help="of another sweep")
    parser.add_argument("--kills", type=at_least(1), default=20, help="at least")
    parser.add_argument("--pause", type=float, default=8.0, help="seconds between kills, at first")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    given = parser.parse_args()
    layers = f"model.layer_to_drop={','.join(map(str, range(given.jobs)))}"
    overrides = given.overrides or [*JOB, layers]
    with tempfile.TemporaryDirectory() as name:
        rng = random.Random(given.seed)
        folders = [Path(name) / side for side in ("undisturbed", "disturbed")]
        tallies, done = [], []
        for folder, kills in zip(folders, (0, given.kills), strict=True):
            cache = Path(f"{folder}-cache")
            chaos = Chaos(
                folder=folder,
                cache=cache,
                jobs=given.jobs,
                kills=kills,
                overrides=overrides,
                rng=rng,
                pause=given.pause,
            )
            tallies.append(chaos.run())
            done.append(min(chaos.completed(), chaos.summed_up()))
        equal = equal_jobs(folders, given.jobs)
    undisturbed, disturbed = tallies
    show(
        f"A sweep of {given.jobs} jobs, killed and started again",
        ["", "s", "starts", "kills of the command", "of a data worker", "completed", "equal"],
        [
            row("undisturbed", undisturbed, done[0], ""),
            row("disturbed", disturbed, done[1], f"{sum(equal)} of {given.jobs}"),
        ],
        f"seed {given.seed}; the exit codes were {', '.join(map(str, disturbed.codes))}",
    )
    aims = [
        Aim(name="kills that are missing", value=given.kills - disturbed.killed, limit=0),
        Aim(name="jobs that are not completed", value=given.jobs - done[1], limit=0),
        Aim(name="jobs with other losses", value=equal.count(False), limit=0),
    ]
    figures = {"undisturbed": vars(undisturbed), "disturbed": vars(disturbed), "equal": equal}
    finish({**figures, "seed": given.seed, "overrides": overrides}, aims, given.json, given.check)


if __name__ == "__main__":
    main()
