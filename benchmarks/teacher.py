"""How much memory a teacher takes: only the removed layers, since the student has the others.

    python benchmarks/teacher.py [--folder DIR] [--json FILE] [--check]

Shows: the peak memory of a training, as result.json has it, of trainer=distill adapter=lora on 24
of 36 layers of a random Qwen3 model of 2.5 GB in float32, wide enough that weights are most of it.
Each training is a fresh process of two steps. --folder keeps the random model for the next time.
Peer: trainer=sft, otherwise the same.
Aim: at most (all layers + adapter) / (kept layers + adapter) of the peer's peak, plus 10 %.
"""

import json
import sys
import tempfile
from math import prod
from pathlib import Path
from typing import Any

from harness.figures import Aim, finish, options, show
from harness.random_model import LAYERS, SHAPES, generate, place, tensors
from harness.runs import run_logged

KEPT_LAYERS = 24
TRAINERS = ("sft", "distill")
MARGIN = 1.1


def train(model: Path, trainer: str) -> dict[str, Any]:
    """Train in a fresh process; return its result.json."""
    model_of = f"model_name={model} model=pruned model.keep_layers={KEPT_LAYERS} selector=uniform"
    steps = "max_steps=2 packing=false per_device_train_batch_size=2 gradient_accumulation_steps=1"
    rows = "data=synthetic generator.train_rows=200 generator.eval_rows=20 max_seq_length=128"
    rest = "bf16=false gradient_checkpointing=false evaluation=none logger=none"
    given = f"{model_of} {steps} {rows} {rest} trainer={trainer} adapter=lora backend=transformers"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "train", *given.split(), f"hydra.run.dir={folder / 'run'}"]
        run_logged(command, folder)
        found: dict[str, Any] = json.loads((folder / "run" / "result.json").read_text())
    return found


def parameters(layers: int) -> int:
    """Return the number of weights of a model with so many layers."""
    return sum(prod(stored.shape) for stored in tensors(SHAPES["small"], layers).values())


def main() -> None:
    """Train with and without a teacher, compare."""
    from transformers import AutoTokenizer

    from lamina.runtime.paths import asset

    parser = options("Compare the memory of a distillation with that of an ordinary training.")
    parser.add_argument("--folder", type=Path, help="where the random model stays")
    given = parser.parse_args()
    with place(given.folder) as folder:
        generate(folder, SHAPES["small"])
        AutoTokenizer.from_pretrained(asset("reference")).save_pretrained(folder)
        results = {trainer: train(folder, trainer) for trainer in TRAINERS}
    peaks = {name: found["metrics"]["peak_memory_bytes"] for name, found in results.items()}
    adapter = results["sft"]["trainable_parameters"]
    whole, kept = (parameters(layers) + adapter for layers in (LAYERS, KEPT_LAYERS))
    limit = MARGIN * whole / kept
    ratio = peaks["distill"] / peaks["sft"]
    rows = [[f"trainer={name}", f"{peak / 1e9:.2f}"] for name, peak in peaks.items()]
    show(
        f"Peak memory of a training of {KEPT_LAYERS} of {LAYERS} layers, adapter=lora",
        ["", "GB"],
        [*rows, ["ratio", f"{ratio:.3f}"], ["at most", f"{limit:.3f}"]],
        f"weights and adapter: {whole:,} with all layers, {kept:,} with the kept ones",
    )
    figures = {"peaks": peaks, "parameters": {"whole": whole, "kept": kept}}
    aim = Aim(name="peak of trainer=distill, of trainer=sft's", value=ratio, limit=limit)
    finish(figures, [aim], given.json, given.check)


if __name__ == "__main__":
    main()
