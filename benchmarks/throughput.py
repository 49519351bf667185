"""Whether the tokens per second and the MFU in result.json are true.

    python benchmarks/throughput.py [--steps 30] [--model FOLDER] [--json FILE] [--check]

Shows: speed over steady steps of two trainings of the embedded reference model with `python -m
train experiment=quickstart`, each in a fresh process: an adapter with packing, and every weight
with padded batches. Both accumulate gradients, evaluate and save in between.
Peer: the same figures computed by hand (harness/speed.py) from the stamps of a clock of the
benchmark's own (harness/stamped.py) and from the model's config.json.
Aim: tokens per second, MFU and the sum of the seconds in result.json at most 3 % from the peer's.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.figures import Aim, at_least, finish, options, show
from harness.runs import run_logged
from harness.speed import RANK, Speed, by_hand, machine_peak

STAMPED = Path(__file__).resolve().parent / "harness" / "stamped.py"
AIM = 0.03
KEPT_LAYERS = 8

CASES = {
    "adapter, packed": "adapter=lora packing=true",
    "every weight, padded": "adapter=full packing=false per_device_train_batch_size=2",
}


def train(folder: Path, model: str, choices: str, steps: int) -> tuple[dict[str, Any], Any]:
    """Train in a fresh process; return result.json's metrics and the stamps."""
    stamps, often = folder / "stamps.json", max(1, steps // 3)
    where = [f"hydra.run.dir={folder / 'run'}", f"model_name={model}", f"lora.r={RANK}"]
    short = f"max_steps={steps} eval_steps={often} save_steps={often} generator.train_rows=400"
    fixed = f"experiment=quickstart model.keep_layers={KEPT_LAYERS} gradient_accumulation_steps=2"
    rest = "generator.eval_rows=30 evaluation=none logger=none"
    overrides = [*where, *" ".join((fixed, short, rest, choices)).split()]
    run_logged([sys.executable, str(STAMPED), str(stamps), "train", *overrides], folder)
    metrics = json.loads((folder / "run" / "result.json").read_text())["metrics"]
    return metrics, json.loads(stamps.read_text())


def reported(metrics: Mapping[str, Any], peak: float) -> Speed:
    """Return result.json's figures; `peak` stands in where it knows no peak."""
    mfu = metrics["flops_per_second"] / peak if metrics["mfu"] is None else metrics["mfu"]
    return Speed(metrics["tokens_per_second"], mfu, sum(metrics["seconds"].values()))


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
    given = parser.parse_args()
    model, peak = Path(given.model).resolve(), machine_peak()
    config = json.loads((model / "config.json").read_text())
    rows, compared, figures = [], [], {}
    for name, choices in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            metrics, stamps = train(Path(folder), str(model), choices, given.steps)
        full = "adapter=full" in choices
        ours = reported(metrics, peak)
        hand = by_hand(stamps, config, layers=KEPT_LAYERS, full=full, peak=peak)
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
        f"Speed over steady steps, {given.steps} steps a run",
        ["", "result.json", "by hand", "apart", "at most"],
        rows,
        f"peak: {peak / 1e9:.4g} GFLOP/s",
    )
    finish({"peak": peak, "steps": given.steps, "runs": figures}, compared, given.json, given.check)


if __name__ == "__main__":
    main()
