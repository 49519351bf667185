"""What it takes to remove layers: bytes read, seconds, peak memory.

    python benchmarks/loading.py [--rounds 3] [--folder DIR] [--mergekit-env DIR] [--json FILE]
                                 [--check]
    python benchmarks/loading.py --shape 8b [--folder DIR] [--json FILE] [--check]

Shows: the first 24 of 36 layers of a random Qwen3 model of 1.3 GB (bfloat16, embeddings untied)
stay, in memory (`load_model`) and on disk (`lamina cut`). Each job is a fresh process
(harness/measured.py), forked where the imports end, which are done once for all rounds. It starts
with the model's files evicted from the page cache, or, where the table says so, in it; all run in
turn, and the smallest figure of all rounds counts, being the least disturbed. Below a table, our
seconds of each round are divided by the peer's. In memory every remaining weight is used once,
since load-then-delete only maps the file. Every finished output is compared with what should have
stayed. No side waits until its output is on the disk.
    Seconds: of imports and job, and of the job. Read: bytes from the disk after the imports
    (`read_bytes`), the kernel's readahead among them; the device's setting stands below the table.
    Peak: memory above that after the imports (`VmHWM`), pages of mapped files included: they are
    where the weights are. GB and MB are decimal.
Peers: load-then-delete with transformers, and, with --mergekit-env, mergekit in an environment of
its own that pip makes there on first use, with this project's transformers and torch. mergekit
writes the tensors and then ends with an error of transformers, shown below the table; its figures
are up to there, and no aim compares with them.
With --shape 8b, `lamina cut` alone cuts a random model of Qwen3-8B's shape once: 16.4 GB of disk,
and 11.8 GB for the result. --folder keeps the random model for the next time; it has to lie on a
disk, not in memory.
Aims, cached or not: at most 1.01 of the kept weights' bytes read; no slower, imports aside, than
the fastest finished peer; a peak of at most the largest tensor and 300 MB, plus the kept weights
where they are loaded; at 8B below 4 GB, imports included.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from harness.figures import Aim, at_least, finish, options, show
from harness.measured import Measure, Run, last_line, prepared
from harness.random_model import SHAPES, generate, place, refuse_difference, tensors
from harness.runs import in_turn

from lamina.weights.header import StoredTensor

KEPT_LAYERS = 24

IN_MEMORY = {"lamina's load_model": "lamina_load", "load, then delete": "load_delete"}
ON_DISK = {"lamina cut": "lamina_cut", "load, delete, save_pretrained": "load_delete_save"}
MERGEKIT_JOB = {"mergekit-yaml, passthrough": "mergekit"}
"""Titles, ours first, and the names of measured.py's jobs."""

IN_CACHE = "on disk, the source in the page cache"

MERGEKIT = ("mergekit==0.1.5", "transformers==5.17.0", "torch==2.13.0")
READ_AIM, SECONDS_AIM = 1.01, 1.0
ABOVE_WEIGHTS_AIM, CUT_PEAK_AIM, PEAK_8B_AIM = 300, 1000, 4000  # MB


@dataclass(frozen=True)
class Bench:
    """The model that the jobs work on."""

    model: Path
    kept: dict[str, StoredTensor]
    mergekit: Path | None
    """Its environment; None leaves it out."""

    @property
    def kept_bytes(self) -> int:
        """Bytes of the weights that stay."""
        return sum(stored.nbytes for stored in self.kept.values())

    @property
    def beside_weights(self) -> float:
        """MB of memory that a job may take besides the weights."""
        return max(stored.nbytes for stored in self.kept.values()) / 1e6 + ABOVE_WEIGHTS_AIM

    def run(self, job: str, measure: Measure, *, warm: bool = False) -> Run:
        """Do a job; compare and remove its output."""
        with tempfile.TemporaryDirectory(dir=self.model.parent) as name:
            run = measure(self.model, KEPT_LAYERS, Path(name), warm=warm)
            output = Path(name) / "out"
            if output.exists() and not run.failure:
                refuse_difference(self.model, output, self.kept)
        if run.failure and job != "mergekit":
            sys.exit(f"error: {job} failed: {run.failure}")
        if not warm and run.read < 0.99 * self.kept_bytes:
            sys.exit(f"error: {self.model} is not on a disk, or cannot be evicted from the cache")
        return run

    def rounds(
        self, jobs: Mapping[str, str], number: int, *, warm: bool = False
    ) -> dict[str, list[Run]]:
        """Do all jobs in turn."""
        own, other = Path(sys.executable), self.mergekit and self.mergekit / "bin" / "python"
        with ExitStack() as stack:
            sides = {}
            for name, job in jobs.items():
                python = other if other and job == "mergekit" else own
                measure = stack.enter_context(prepared(python, job))
                sides[name] = partial(self.run, job, measure, warm=warm)
            return in_turn(sides, number, describe)


def describe(run: Run) -> str:
    """Return a run's seconds and bytes in one line."""
    return f"{run.seconds_alone:.2f} of {run.seconds:.2f} s, {run.read / 1e6:.0f} MB read"


def install_mergekit(folder: Path) -> str:
    """Make an environment with mergekit if there is none; return why that failed, or ''."""
    if (folder / "bin" / "mergekit-yaml").is_file():
        return ""
    print(f"installing {', '.join(MERGEKIT)} into {folder}")
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *MERGEKIT]
    for command in ([sys.executable, "-m", "venv", str(folder)], pip):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            return last_line(done.stderr or done.stdout)
    return ""


def smallest(runs: Sequence[Run], figure: str) -> float:
    """Return the smallest figure of several runs."""
    return min(getattr(run, figure) for run in runs)


def row(name: str, runs: Sequence[Run], kept_bytes: int) -> list[str]:
    """Return one line of a table."""
    keys = ("seconds", "seconds_alone", "read", "peak")
    seconds, alone, read, peak = (smallest(runs, key) for key in keys)
    title = f"{name}: fails" if runs[0].failure else name
    megabytes = [f"{size / 1e6:.0f}" for size in (read, peak)]
    of_kept = f"{read / kept_bytes:.4f}"
    return [title, f"{seconds:.2f}", f"{alone:.2f}", megabytes[0], of_kept, megabytes[1]]


def ratios(ours: Sequence[Run], other: Sequence[Run]) -> str:
    """Return the median and the range of our seconds in a round, of the other's."""
    figures = {}
    for key, what in (("seconds_alone", "without imports"), ("seconds", "the whole process")):
        found = [getattr(a, key) / getattr(b, key) for a, b in zip(ours, other, strict=True)]
        figures[what] = f"{median(found):.2f} ({min(found):.2f} to {max(found):.2f})"
    listed = ", ".join(f"{what} {figure}" for what, figure in figures.items())
    return f"seconds of the other's in each round, median and range: {listed}"


def table(bench: Bench, where: str, runs: Mapping[str, Sequence[Run]], absent: str = "") -> None:
    """Show the runs of one table, and below it why one failed or is absent."""
    rows = [row(name, of, bench.kept_bytes) for name, of in runs.items()]
    notes = [f"kept: {bench.kept_bytes / 1e6:.0f} MB; the disk reads ahead {read_ahead(bench)}"]
    notes.append(ratios(*[*runs.values()][:2]))
    notes += [f"{name}: {of[0].failure}" for name, of in runs.items() if of[0].failure]
    if absent:
        rows.append(["mergekit-yaml: not installed", *[""] * 5])
        notes.append(f"mergekit-yaml: {absent}")
    header = ["smallest of all rounds", "s", "s, no imports", "read, MB", "of kept", "peak, MB"]
    show(f"{KEPT_LAYERS} of 36 layers stay, {where}", header, rows, "\n".join(notes))


def read_ahead(bench: Bench) -> str:
    """Return the device's readahead, where the kernel reports it."""
    device = bench.model.stat().st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    return f"{setting.read_text().strip()} KiB" if setting.is_file() else "an unknown amount"


def aims(
    runs: Mapping[str, Sequence[Run]], kept_bytes: int, peak_limit: float, where: str = ""
) -> list[Aim]:
    """Return the figures of one table that have an aim; ours come first."""
    ours, *others = runs
    finished = [name for name in others if not runs[name][0].failure]
    fastest = min(smallest(runs[name], "seconds_alone") for name in finished)
    read = smallest(runs[ours], "read") / kept_bytes
    slower = smallest(runs[ours], "seconds_alone") / fastest
    peak, title = smallest(runs[ours], "peak") / 1e6, ours + where
    return [
        Aim(name=f"{title}: bytes read, of the kept ones", value=read, limit=READ_AIM),
        Aim(name=f"{title}: seconds, of the fastest other's", value=slower, limit=SECONDS_AIM),
        Aim(name=f"{title}: peak memory in MB", value=peak, limit=peak_limit),
    ]


def compare(bench: Bench, number: int) -> tuple[dict[str, Any], list[Aim]]:
    """Fill and show the tables; return their figures and the aims."""
    absent = install_mergekit(bench.mergekit) if bench.mergekit else ""
    on_disk = ON_DISK | (MERGEKIT_JOB if bench.mergekit and not absent else {})
    memory, disk = (bench.rounds(jobs, number) for jobs in (IN_MEMORY, on_disk))
    cached = bench.rounds(ON_DISK, number, warm=True)
    table(bench, "in memory", memory)
    table(bench, "on disk", disk, absent)
    table(bench, IN_CACHE, cached)
    figures = {
        where: {name: [asdict(run) for run in of] for name, of in runs.items()}
        for where, runs in (("in memory", memory), ("on disk", disk), (IN_CACHE, cached))
    }
    cut_peak = min(bench.beside_weights, CUT_PEAK_AIM)
    reached = [
        *aims(memory, bench.kept_bytes, bench.kept_bytes / 1e6 + bench.beside_weights),
        *aims(disk, bench.kept_bytes, cut_peak),
        *aims(cached, bench.kept_bytes, cut_peak, ", cached"),
    ]
    return {"read_ahead": read_ahead(bench), "absent": absent, **figures}, reached


def cut_once(bench: Bench) -> tuple[dict[str, Any], list[Aim]]:
    """Cut the model once and show the cost; return the figures and the aim."""
    with prepared(Path(sys.executable), "lamina_cut") as measure:
        run = bench.run("lamina_cut", measure)
    sizes = {"kept": bench.kept_bytes, "read": run.read, "written": run.written}
    rows = [
        ["seconds", f"{run.seconds:.1f}", ""],
        ["seconds without imports", f"{run.seconds_alone:.1f}", ""],
        ["peak memory, imports included, GB", f"{run.peak_whole / 1e9:.2f}", "below 4"],
        *([f"{name}, GB", f"{size / 1e9:.3f}", ""] for name, size in sizes.items()),
    ]
    notes = f"the disk reads ahead {read_ahead(bench)}"
    show("lamina cut, the shape of Qwen3-8B", ["", "figure", "aim"], rows, notes)
    peak = Aim(name="lamina cut: peak memory in MB", value=run.peak_whole / 1e6, limit=PEAK_8B_AIM)
    return {"read_ahead": read_ahead(bench), "lamina cut": asdict(run)}, [peak]


def main() -> None:
    """Generate, measure, show, compare with the aims."""
    parser = options("Compare ways to remove layers: bytes read, seconds, peak memory.")
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of the random model")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="counted runs of each")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="keeps the random model")
    parser.add_argument("--mergekit-env", type=Path, metavar="DIR", help="measure mergekit, too")
    given = parser.parse_args()
    shape = SHAPES[given.shape]
    with place(given.folder) as folder:
        model = folder / given.shape
        generate(model, shape)
        mergekit = given.mergekit_env and given.mergekit_env.expanduser().resolve()
        bench = Bench(model, tensors(shape, KEPT_LAYERS), mergekit)
        once = given.shape == "8b"
        figures, reached = cut_once(bench) if once else compare(bench, given.rounds)
    finish({"shape": given.shape, **figures}, reached, given.json, given.check)


if __name__ == "__main__":
    main()
