"""Whether the tokens a second and the MFU in result.json are true.

    python benchmarks/throughput.py [--steps 30] [--model FOLDER] [--json FILE] [--check]

Trains the embedded reference model with `python -m train experiment=quickstart` twice, each time in
a fresh process: an adapter with packing, and every weight with padded batches; both accumulate
gradients, evaluate and save in between. stamped.py runs beside it: it takes the time with a clock
of its own and reads the documents' lengths off the batches.

By hand, from those stamps and the model's config.json:

    seconds   from the end of the last warm-up step (a tenth of the steps, 2 to 10) to the end of
              the last step, without what lies between a step's end and the end of an evaluation
              or save behind it
    tokens/s  lengths of the documents of those steps, over seconds
    MFU       operations of those steps, over seconds, over the peak; the operations are written out
              in `operations` below, for this one architecture

The peak is that of the accelerator where there is one. A CPU has none that is known: there, the
fastest multiplication of two matrices of 1024 x 1024 that was seen here stands for it, in both
figures.

Aims: each figure of result.json at most 3 % from the one by hand, and its seconds add up to the
training's, likewise.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import Aim, at_least, finish, options, show

HERE = Path(__file__).resolve().parent
AIM = 0.03
RANK = 16
KEPT_LAYERS = 8

CASES = {
    "adapter, packed": "adapter=lora packing=true",
    "every weight, padded": "adapter=full packing=false per_device_train_batch_size=2",
}


@dataclass(frozen=True)
class Speed:
    """What one training reached."""

    tokens_per_second: float
    mfu: float
    seconds: float
    """Of the whole training."""


def train(folder: Path, model: str, choices: str, steps: int) -> tuple[dict[str, Any], Any]:
    """Train in a fresh process; return result.json's metrics and the stamps."""
    stamps, often = folder / "stamps.json", max(1, steps // 3)
    where = [f"hydra.run.dir={folder / 'run'}", f"model_name={model}", f"lora.r={RANK}"]
    short = f"max_steps={steps} eval_steps={often} save_steps={often} generator.train_rows=400"
    fixed = f"experiment=quickstart model.keep_layers={KEPT_LAYERS} gradient_accumulation_steps=2"
    rest = "generator.eval_rows=30 evaluation=none logger=none"
    given = [*where, *" ".join((fixed, short, rest, choices)).split()]
    command = [sys.executable, str(HERE / "stamped.py"), str(stamps), "train", *given]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with (folder / "log").open("w") as log:
        done = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log)
    if done.returncode != 0:
        sys.exit(f"error: {' '.join(command)} failed:\n{(folder / 'log').read_text()[-3000:]}")
    metrics = json.loads((folder / "run" / "result.json").read_text())["metrics"]
    return metrics, json.loads(stamps.read_text())


def by_hand(
    stamps: Mapping[str, Any], config: Mapping[str, Any], *, layers: int, full: bool, peak: float
) -> Speed:
    """Compute the speed from stamps.

    Args:
        stamps: As stamped.py writes them.
        config: The model's config.json.
        layers: How many of its layers stay.
        full: Whether every weight is trained, or an adapter.
        peak: Operations a second.
    """
    steps = stamps["steps"]
    warm = min(max(2, -(-len(steps) // 10)), 10)
    seconds = steps[-1] - steps[warm - 1] - left_out(stamps["left_out"], steps[warm - 1], steps[-1])
    steady = [(lengths, targets) for step, lengths, targets in stamps["batches"] if step >= warm]
    documents = [length for lengths, _ in steady for length in lengths]
    targets = sum(targets for _, targets in steady)
    work = operations(config, documents, targets, layers=layers, full=full)
    return Speed(
        tokens_per_second=sum(documents) / seconds,
        mfu=work / seconds / peak,
        seconds=stamps["end"] - stamps["begin"],
    )


def left_out(spans: Sequence[tuple[float, float]], begin: float, end: float) -> float:
    """Return the seconds in some spans, of which several may begin at one step's end."""
    longest: dict[float, float] = {}
    for since, until in spans:
        longest[since] = max(until, longest.get(since, since))
    return sum(until - since for since, until in longest.items() if begin <= since < end)


def operations(
    config: Mapping[str, Any], documents: Sequence[int], targets: int, *, layers: int, full: bool
) -> float:
    """Return the operations of training a Qwen3 on some documents, written out.

    Args:
        config: Its config.json.
        documents: Their lengths in tokens.
        targets: Tokens whose prediction is trained.
        layers: How many of its layers stay.
        full: Whether every weight is trained, or an adapter on every linear layer.
    """
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, head_dim = config["num_attention_heads"], config["head_dim"]
    queries, keys = heads * head_dim, config["num_key_value_heads"] * head_dim
    shapes = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    shapes += [(hidden, inner), (hidden, inner), (inner, hidden)]
    matrices = sum(a * b for a, b in shapes)
    head = hidden * config["vocab_size"]
    pairs = sum(length * (length + 1) / 2 for length in documents)
    attention = 12 * layers * queries * pairs
    if full:
        return 6 * layers * matrices * sum(documents) + 6 * head * targets + attention
    adapter = sum(RANK * (a + b) for a, b in shapes)
    a_token = layers * (4 * matrices + 6 * adapter)
    # The first layer's queries, keys and values read what nothing trained has made.
    a_token -= 2 * hidden * (queries + 2 * keys) + 2 * 3 * RANK * hidden
    return a_token * sum(documents) + 4 * head * targets + attention


def reported(metrics: Mapping[str, Any], peak: float) -> Speed:
    """Return what result.json says; where no peak is known, of the one that is given."""
    from lamina.heal.callbacks.clock import Reading

    found = Reading(1.0, metrics["tokens_per_second"], metrics["flops_per_second"])
    mfu = found.mfu(peak) if metrics["mfu"] is None else metrics["mfu"]
    return Speed(found.tokens_per_second, mfu, sum(metrics["seconds"].values()))


def machine_peak(dtype: str = "float32") -> float:
    """Return what this machine computes in a second at most: known, or measured."""
    from lamina.measure.peaks import compute_peak

    return compute_peak(bf16=False, fp16=False, weights=dtype) or measured_peak(dtype)


def measured_peak(dtype: str) -> float:
    """Return the operations a second of the fastest of ten products of two matrices."""
    import torch

    gpu = torch.cuda.is_available()
    size, device = (8192, "cuda") if gpu else (1024, "cpu")
    matrix = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        float((matrix @ matrix)[0, 0])
        seconds.append(time.perf_counter() - started)
    return float(2 * size**3 / min(seconds))


def aims(name: str, ours: Speed, hand: Speed) -> list[Aim]:
    """Return how far each figure is from the one by hand."""
    return [
        Aim(
            name=f"{name}: {figure}, apart",
            value=abs(getattr(ours, figure) / getattr(hand, figure) - 1),
            limit=AIM,
        )
        for figure in ("tokens_per_second", "mfu", "seconds")
    ]


def main() -> None:
    """Train, compute, compare."""
    from lamina.runtime.paths import asset

    parser = options("Compare the speed in result.json with one computed by hand.")
    parser.add_argument("--steps", type=at_least(5), default=30, help="optimizer steps of a run")
    parser.add_argument("--model", default=asset("reference"), help="folder of a Qwen3 model")
    asked = parser.parse_args()
    model, peak = Path(asked.model).resolve(), machine_peak()
    config = json.loads((model / "config.json").read_text())
    rows, compared, figures = [], [], {}
    for name, choices in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            metrics, stamps = train(Path(folder), str(model), choices, asked.steps)
        full = "adapter=full" in choices
        ours, hand = (
            reported(metrics, peak),
            by_hand(stamps, config, layers=KEPT_LAYERS, full=full, peak=peak),
        )
        apart = aims(name, ours, hand)
        compared += apart
        figures[name] = {"result.json": vars(ours), "by hand": vars(hand)}
        rows += [
            [f"{name}: {figure}", f"{said:.5g}", f"{found:.5g}", f"{aim.value:.2%}", f"{AIM:.0%}"]
            for (figure, said), found, aim in zip(
                vars(ours).items(), vars(hand).values(), apart, strict=True
            )
        ]
    show(
        f"Speed over steady steps, {asked.steps} steps a run",
        ["", "result.json", "by hand", "apart", "at most"],
        rows,
        f"peak: {peak / 1e9:.4g} GFLOP/s",
    )
    finish({"peak": peak, "steps": asked.steps, "runs": figures}, compared, asked.json, asked.check)


if __name__ == "__main__":
    main()
