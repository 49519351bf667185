"""What it takes to score the removal of every layer: layer-forwards, seconds, memory.

    python benchmarks/scan.py [--rounds 3] [--tokens 512] [--device cpu] [--json FILE] [--check]
    python benchmarks/scan.py --shape 8b [--tokens 512] [--folder DIR] [--json FILE] [--check]

Shows: one sweep over a random model of 36 layers in float32, which finds the loss without each
layer and, besides, divergences from the whole model's predictions, influences and angular
distances. Then 12 layers leave one after the other, each time the one whose removal costs least, on
one window of 64 tokens. Tokens come in windows of 256, or in one that is shorter. The smallest
seconds of all rounds count, being the least disturbed. The head is everything behind the last
layer, divergences included.
Peer: the naive loop, which calls transformers' own forward pass with a list of the 35 other layers,
in turn, in the same process, on the same device, with the same windows in one batch. Both hold the
weights in memory before the clock starts.
With --shape 8b, a random model of Qwen3-8B's shape, 16.4 GB of disk in bfloat16, is scanned on CPU
in a fresh process (harness/measured.py), layer by layer from disk, its files evicted from the page
cache before. Its peer loads the whole model and uses every weight once. Read: bytes from the disk
after the imports. Peak: memory above that after the imports (`VmHWM`). --folder keeps the model for
the next time, in its folder 8b, as loading.py does; it has to lie on a disk, not in memory. GB are
decimal.
Aims: losses equal to 1e-5; 666 layer-forwards, the naive loop's being 1260; the naive loop at least
1.6 times as slow. Leaving out 12: the same choices, at most 0.55 of the layer-forwards. At 8B: at
most 1.01 of the file's bytes read, a peak of at most 6 GB.
"""

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.figures import Aim, at_least, finish, options, show
from harness.measured import Run, prepared
from harness.random_model import LAYERS, SHAPES, generate, place, tensors
from harness.runs import in_turn

if TYPE_CHECKING:
    from harness.leave_one_out import Chosen, Found

LEFT_OUT = 12
"""Layers left out one after the other."""

LOSS_AIM, FORWARDS_AIM, SECONDS_AIM, GREEDY_AIM = 1e-5, LAYERS * (LAYERS + 1) // 2, 1 / 1.6, 0.55
READ_AIM, PEAK_AIM = 1.01, 6000  # MB

GREEDY_TOKENS = 64
NAMES = ("one sweep", "naive loop")


def compare(tokens: int, rounds: int, device: str) -> tuple[dict[str, Any], list[Aim]]:
    """Score and choose with both, show both; return the figures and the aims."""
    from harness.leave_one_out import scorers, summary, token_ids

    ids, few = token_ids(tokens), token_ids(GREEDY_TOKENS)
    with scorers(device) as both:
        sides = {NAMES[0]: lambda: both[0](ids), NAMES[1]: lambda: both[1](ids)}
        runs = list(in_turn(sides, rounds, lambda found: f"{found.seconds:.2f} s").values())
        chosen = [score.greedy(few, LEFT_OUT) for score in both]
    swept, naive = (min(of, key=lambda run: run.seconds) for of in runs)
    table(swept, naive, f"{ids.numel()} tokens, {device}")
    greedy_table(*chosen)
    figures = {
        "leave one out": dict(zip(NAMES, map(summary, runs), strict=True)),
        "greedy": dict(zip(NAMES, map(asdict, chosen), strict=True)),
    }
    return figures, [*aims(swept, naive), *greedy_aims(*chosen)]


def table(swept: "Found", naive: "Found", where: str) -> None:
    """Show the cost of scoring every removal."""
    rows = [
        [
            name,
            str(found.layer_forwards),
            f"{found.seconds:.2f}",
            f"{found.head_seconds:.2f}",
            f"{found.head_seconds / found.seconds:.3f}",
        ]
        for name, found in zip(NAMES, (swept, naive), strict=True)
    ]
    notes = [
        f"naive / sweep: {naive.seconds / swept.seconds:.2f} of the seconds, "
        f"{naive.layer_forwards / swept.layer_forwards:.2f} of the layer-forwards",
        f"largest difference of a loss: {loss_difference(swept, naive):.2g}",
    ]
    header = ["smallest of all rounds", "layer-forwards", "s", "of them, head", "share"]
    show(f"each of {LAYERS} layers left out, {where}", header, rows, "\n".join(notes))


def greedy_table(swept: "Chosen", naive: "Chosen") -> None:
    """Show the cost of leaving out some layers."""
    rows = [
        [
            name,
            str(chosen.layer_forwards),
            f"{chosen.seconds:.2f}",
            " ".join(map(str, chosen.layers)),
        ]
        for name, chosen in zip(NAMES, (swept, naive), strict=True)
    ]
    same = f"the same choice in {LEFT_OUT - differing(swept, naive)} of {LEFT_OUT} rounds"
    share = (
        f"sweep / naive: {swept.layer_forwards / naive.layer_forwards:.4f} of the layer-forwards"
    )
    header = ["", "layer-forwards", "s", "left out, one after the other"]
    title = f"{LEFT_OUT} of {LAYERS} layers left out by turns, {GREEDY_TOKENS} tokens"
    show(title, header, rows, f"{same}\n{share}")


def loss_difference(swept: "Found", naive: "Found") -> float:
    """Return the largest difference of the loss without one layer."""
    return max(abs(loss - swept.losses[layer]) for layer, loss in naive.losses.items())


def differing(swept: "Chosen", naive: "Chosen") -> int:
    """Return the number of rounds in which both chose different layers."""
    return sum(a != b for a, b in zip(swept.layers, naive.layers, strict=True))


def aims(swept: "Found", naive: "Found") -> list[Aim]:
    """Return the figures of the first table that have an aim."""
    slower = swept.seconds / naive.seconds
    return [
        Aim(name="loss, difference", value=loss_difference(swept, naive), limit=LOSS_AIM),
        Aim(name="sweep: layer-forwards", value=swept.layer_forwards, limit=FORWARDS_AIM),
        Aim(name="sweep: seconds, of the naive loop's", value=slower, limit=SECONDS_AIM),
    ]


def greedy_aims(swept: "Chosen", naive: "Chosen") -> list[Aim]:
    """Return the figures of the second table that have an aim."""
    share = swept.layer_forwards / naive.layer_forwards
    return [
        Aim(name="by turns: different choices", value=differing(swept, naive), limit=0),
        Aim(name="by turns: layer-forwards, of the naive", value=share, limit=GREEDY_AIM),
    ]


def scan_from_disk(model: Path, tokens: int) -> tuple[dict[str, Any], list[Aim]]:
    """Scan a model of many GB, load it, show both; return the figures and the aims."""
    generate(model, SHAPES["8b"])
    size = sum(stored.nbytes for stored in tensors(SHAPES["8b"], LAYERS).values())
    scanned, cost = alone("lamina_scan", model, tokens)
    loaded, _ = alone("lamina_load", model, LAYERS)
    head = f"{cost['head_seconds']:.1f}"
    rows = [
        row(f"scan of {tokens} tokens", scanned, head, size),
        row("load_model, every weight used once", loaded, "", size),
    ]
    header = ["", "s", "s, no imports", "of them, head", "read, GB", "of the file", "peak, GB"]
    notes = f"weights: {size / 1e9:.2f} GB; {cost['layer_forwards']} layer-forwards"
    show("the shape of Qwen3-8B, bfloat16, CPU", header, rows, notes)
    figures = {"bytes": size, "scan": asdict(scanned), "cost": cost, "load": asdict(loaded)}
    return figures, [
        Aim(name="scan: bytes read, of the file's", value=scanned.read / size, limit=READ_AIM),
        Aim(name="scan: peak memory in MB", value=scanned.peak / 1e6, limit=PEAK_AIM),
    ]


def alone(job: str, model: Path, number: int) -> tuple[Run, dict[str, Any]]:
    """Do one of measured.py's jobs; return its cost and what it wrote."""
    with tempfile.TemporaryDirectory() as name:
        with prepared(Path(sys.executable), job) as measure:
            run = measure(model, number, Path(name))
        output = Path(name) / "out"
        wrote = json.loads(output.read_text()) if output.is_file() else {}
    if run.failure:
        sys.exit(f"error: {job} failed: {run.failure}")
    return run, wrote


def row(name: str, run: Run, head: str, size: int) -> list[str]:
    """Return one line of the table about the model on disk."""
    seconds = [f"{run.seconds:.1f}", f"{run.seconds_alone:.1f}", head]
    return [
        name,
        *seconds,
        f"{run.read / 1e9:.3f}",
        f"{run.read / size:.4f}",
        f"{run.peak / 1e9:.2f}",
    ]


def main() -> None:
    """Measure, show, compare with the aims."""
    parser = options("Compare ways to score every removal: layer-forwards, seconds, memory.")
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of the random model")
    parser.add_argument("--tokens", type=at_least(2), default=512, help="in windows of 256")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="counted runs of each")
    parser.add_argument("--device", default="cpu", help="of both, unless the shape is 8b")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="keeps the model of shape 8b")
    given = parser.parse_args()
    if given.shape == "8b":
        with place(given.folder) as folder:
            figures, reached = scan_from_disk(folder / given.shape, given.tokens)
    else:
        figures, reached = compare(given.tokens, given.rounds, given.device)
    chosen = {name: value for name, value in vars(given).items() if name not in ("json", "folder")}
    finish({"options": chosen, **figures}, reached, given.json, given.check)


if __name__ == "__main__":
    main()
