"""What Lamina costs on top of plain TRL: until the first optimizer step, and in every step.

    python benchmarks/overhead.py [--rounds 5] [--steps 60] [--rows 2000] [--warm] [--json FILE]
                                  [--check]

Shows: seconds from the start of the process to the end of the first optimizer step, and the median
time between the ends of two steps after the first ten; CPU time beside both. `python -m train
experiment=quickstart model=original` trains the embedded reference model in a fresh process. The
data sets' cache is empty at first; with --warm all runs share a filled one.
Peer: a TRL script (harness/plain_trl.py) with the same data, batches and arguments, in turn and
with the same clock (harness/stamped.py). The losses of all steps and the training arguments are
compared. The smallest figure of all rounds counts, being the least disturbed; the smallest and the
largest comparison within one round show how far to trust it.
Aims: first step at most 0.5 s later, step time at most 1.02 times as long, no difference in any
step's loss.
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any

from harness.figures import Aim, at_least, finish, options, show
from harness.runs import in_turn, run_logged

HARNESS = Path(__file__).resolve().parent / "harness"
SETTLING_STEPS = 10
"""Steps at the start of a training that do not count as steady."""

FIRST_STEP_AIM, STEP_AIM, LOSS_AIM = 0.5, 1.02, 0.0

OWN_ARGUMENTS = {"output_dir", "disable_tqdm", "assistant_only_loss"}
"""Differ by design: where to write, who draws the progress line, who masks the labels."""


@dataclass(frozen=True)
class Job:
    """The training of both sides."""

    model: str
    train: str
    eval: str
    steps: int

    def plain(self, folder: Path) -> list[str]:
        """Return stamped.py's arguments for plain TRL."""
        steps = self.steps
        arguments = {
            "output_dir": str(folder / "out"),
            "assistant_only_loss": True,
            "max_length": 512,
            "learning_rate": 2e-3,
            "per_device_train_batch_size": 1,
            "per_device_eval_batch_size": 1,
            "num_train_epochs": 3,
            **{"max_steps": steps, "eval_steps": steps, "save_steps": steps},
            **{"eval_strategy": "steps", "save_strategy": "steps", "save_total_limit": 2},
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
            "greater_is_better": False,
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "bf16": False,
            "include_num_input_tokens_seen": "non_padding",
        }
        rows = {"train": self.train, "eval": self.eval}
        loading = {"dtype": "float32"}
        settings = {"model": self.model, "loading": loading, "layers": None, "rows": rows}
        file = folder / "settings.json"
        file.write_text(json.dumps({**settings, "rank": 16, "arguments": arguments}))
        return [str(HARNESS / "plain_trl.py"), str(file)]

    def lamina(self, folder: Path) -> list[str]:
        """Return stamped.py's arguments for Lamina."""
        choices = "experiment=quickstart model=original data=jsonl evaluation=none logger=none"
        intervals = [f"{key}_steps={self.steps}" for key in ("max", "eval", "save")]
        files = [f"data.train={self.train}", f"data.eval={self.eval}"]
        where = [f"model_name={self.model}", f"hydra.run.dir={folder / 'out'}"]
        return ["train", *choices.split(), *intervals, "logging_steps=1", *files, *where]


@dataclass(frozen=True)
class Run:
    """One timed training; times in seconds from the start of its process, CPU times its own."""

    called: float
    built: float
    first_step: float
    first_step_cpu: float
    steps: list[float]
    steps_cpu: list[float]
    losses: list[float]
    arguments: dict[str, Any]

    @property
    def step(self) -> float:
        """Median seconds in a steady step."""
        return median(self.steps[SETTLING_STEPS:])

    @property
    def step_cpu(self) -> float:
        """Median CPU seconds in a steady step."""
        return median(self.steps_cpu[SETTLING_STEPS:])


def timed_run(job: Job, side: str, folder: Path, cache: Path | None) -> Run:
    """Train in a fresh process, in a folder of its own below `folder`, and read the stamps."""
    own = Path(tempfile.mkdtemp(dir=folder))
    file, arguments = own / "stamps.json", getattr(job, side)(own)
    command = [sys.executable, str(HARNESS / "stamped.py"), str(file), *arguments]
    started = time.monotonic()
    run_logged(command, own, HF_DATASETS_CACHE=str(cache or own / "cache"))
    stamps = json.loads(file.read_text())
    wall, cpu = stamps["steps"], stamps["steps_cpu"]
    return Run(
        called=stamps["called"][0] - started,
        built=stamps["built"][0] - started,
        first_step=wall[0] - started,
        first_step_cpu=cpu[0],
        steps=[after - before for before, after in pairwise(wall)],
        steps_cpu=[after - before for before, after in pairwise(cpu)],
        losses=stamps["losses"],
        arguments=stamps["arguments"],
    )


def write_data(folder: Path, rows: int) -> tuple[str, str]:
    """Write training and evaluation rows of the project's generator; return the two paths."""
    from lamina.data.synthetic import Split, generate

    sizes: dict[Split, int] = {"train": rows, "eval": 100}
    for split, size in sizes.items():
        lines = [json.dumps(row) + "\n" for row in islice(generate(split, 1), size)]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return str(folder / "train.jsonl"), str(folder / "eval.jsonl")


def loss_difference(plain: Sequence[Run], ours: Sequence[Run]) -> float:
    """Return the largest difference of one step's loss between any two runs."""
    losses = [run.losses for run in (*plain, *ours)]
    return max(max(step) - min(step) for step in zip(*losses, strict=True))


def differing_arguments(plain: Run, ours: Run) -> list[str]:
    """Return the names of the training arguments that differ and should not."""
    names = sorted(plain.arguments.keys() | ours.arguments.keys())
    differ = [name for name in names if plain.arguments.get(name) != ours.arguments.get(name)]
    return [name for name in differ if name not in OWN_ARGUMENTS]


def row(
    name: str, plain: Sequence[float], ours: Sequence[float], unit: str, aim: str = ""
) -> list[str]:
    """Return one line of the table: the smallest figures, and how far apart they are."""
    scale = 1e3 if unit == "ms" else 1.0
    digits = 1 if unit == "ms" else 2
    a, b = min(plain) * scale, min(ours) * scale
    apart = f"{b / a:.4f}" if unit == "ms" else f"{b - a:+.2f} s"
    pairs = [y / x if unit == "ms" else y - x for x, y in zip(plain, ours, strict=True)]
    spread = f"{min(pairs):.3f} to {max(pairs):.3f}"
    return [f"{name}, {unit}", f"{a:.{digits}f}", f"{b:.{digits}f}", apart, spread, aim]


def table(plain: Sequence[Run], ours: Sequence[Run]) -> list[list[str]]:
    """Return all lines of the table."""
    lines = [
        ("trainer called", "called", "s", ""),
        ("trainer built", "built", "s", ""),
        ("first step", "first_step", "s", f"at most +{FIRST_STEP_AIM} s"),
        ("first step, CPU", "first_step_cpu", "s", ""),
        ("step", "step", "ms", f"at most {STEP_AIM}"),
        ("step, CPU", "step_cpu", "ms", ""),
    ]
    rows = [
        row(name, [getattr(r, key) for r in plain], [getattr(r, key) for r in ours], unit, aim)
        for name, key, unit, aim in lines
    ]
    largest = f"{loss_difference(plain, ours):.2g}"
    return [*rows, ["largest difference of a step's loss", "", "", largest, "", f"{LOSS_AIM:g}"]]


def aims(plain: Sequence[Run], ours: Sequence[Run]) -> list[Aim]:
    """Return the figures that have an aim."""
    later = min(r.first_step for r in ours) - min(r.first_step for r in plain)
    longer = min(r.step for r in ours) / min(r.step for r in plain)
    return [
        Aim(name="first step, seconds later", value=later, limit=FIRST_STEP_AIM),
        Aim(name="step time, ratio", value=longer, limit=STEP_AIM),
        Aim(name="loss, difference", value=loss_difference(plain, ours), limit=LOSS_AIM),
    ]


def main() -> None:
    """Train, show, compare with the aims."""
    from lamina.runtime.paths import asset

    parser = options("Time a training with Lamina against the same with plain TRL.")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="counted runs of each")
    parser.add_argument("--steps", type=at_least(SETTLING_STEPS + 2), default=60, help="a run")
    parser.add_argument("--rows", type=at_least(1), default=2000, help="training rows")
    parser.add_argument("--warm", action="store_true", help="all runs share a data sets' cache")
    parser.add_argument("--model", default=asset("reference"), help="folder of the model")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = Job(str(Path(given.model).resolve()), *write_data(folder, given.rows), given.steps)
        cache = folder / "cache" if given.warm else None
        sides = {
            name: partial(timed_run, job, side, folder, cache)
            for name, side in (("plain TRL", "plain"), ("Lamina", "lamina"))
        }
        runs = in_turn(
            sides, given.rounds, lambda r: f"{r.first_step:.1f} s, {r.step * 1e3:.1f} ms"
        )
    plain, ours = runs.values()
    differing = differing_arguments(plain[0], ours[0])
    show(
        f"Lamina on top of plain TRL, {given.rounds} rounds, {given.steps} steps a run",
        ["smallest of all rounds", *runs, "apart", "in single rounds", "aim"],
        table(plain, ours),
        f"training arguments that differ: {', '.join(differing) or 'none'}",
    )
    figures = {
        "options": {name: value for name, value in vars(given).items() if name != "json"},
        "runs": {name: [asdict(run) for run in of] for name, of in runs.items()},
        "differing_arguments": differing,
    }
    finish(figures, aims(plain, ours), given.json, given.check)


if __name__ == "__main__":
    main()
