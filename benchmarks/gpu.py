"""The GPU table: Qwen3-8B's shape, healed with Lamina and with plain TRL.

    python benchmarks/gpu.py [--budget 540] [--json FILE] [--check] [--again] [--tiny] ...

Shows: tokens per second over steady steps, MFU (src/lamina/measure/speed.py), peak memory, and how
much faster the smaller model is, over the ideal. A model of Qwen3-8B's shape with random weights
(16.4 GB, written once, no network) trains for 20 steps on packs of 4096 tokens in bfloat16, without
evaluations, saves and recomputation: `python -m train` with backend x kernels x adapter x kept
layers, each cell in a fresh process. benchmarks/throughput.py shows that the figures are true.
Peer: plain TRL (harness/plain_trl.py) with the same model, rows, arguments and attention.
Aims on one H200: 12,000 tokens/s with an adapter, 6,000 with every weight; never below plain TRL;
smaller models at least 0.9 of the ideal times as fast. With --tiny the same matrix runs with a
model of 36 tiny layers, on a CPU too, and no aim is judged: it shows that the script works.

It works in slices: no cell starts that would not end within --budget seconds, and finished cells
are kept in the JSON file. The same command, repeated, completes the table. A cell that cannot run
is listed with its reason.

On a machine with torch and transformers and no network, bring the rest as wheels, 34 MB in all:

    python benchmarks/gpu.py --fetch wheels           where there is a network
    pip install --no-deps --no-index wheels/*.whl     on that machine
    PYTHONPATH=src python benchmarks/gpu.py
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.figures import at_least, machine, options

if TYPE_CHECKING:
    from harness.gpu_cells import Bench, Cell

HERE = Path(__file__).resolve().parent
WHEELS = HERE / "harness" / "gpu-wheels.txt"
PURE = "antlr4-python3-runtime"
"""Published as source only; built on the fetching machine."""

FIRST_GUESS = 120.0
"""Seconds of a cell before one of its kind was measured."""

AIMED_AT = "NVIDIA H200"


def fetch(folder: Path) -> None:
    """Fetch the wheels that gpu-wheels.txt lists, for Python 3.12."""
    wanted = [line for line in WHEELS.read_text().splitlines() if not line.startswith("#")]
    built = [line for line in wanted if line.startswith(PURE)]
    ready = [line for line in wanted if line not in built]
    given = ["--only-binary=:all:", "--python-version", "3.12", "--dest", str(folder), *ready]
    pip(["download", *given])
    pip(["wheel", "--wheel-dir", str(folder), *built])
    size = sum(path.stat().st_size for path in folder.glob("*.whl"))
    print(f"{len(wanted)} wheels, {size / 1e6:.0f} MB; on the other machine:")
    print(f"pip install --no-deps --no-index {folder}/*.whl")


def pip(arguments: Sequence[str]) -> None:
    """Run pip without dependencies."""
    subprocess.run([sys.executable, "-m", "pip", *arguments, "--no-deps", "--quiet"], check=True)


def refuse_missing() -> None:
    """End if a package that every cell needs is missing."""
    lacking = []
    for name in ("trl", "datasets", "hydra-core", "omegaconf", "peft"):
        try:
            version(name)
        except PackageNotFoundError:
            lacking.append(name)
    if lacking:
        sys.exit(
            f"error: {', '.join(lacking)} missing: python benchmarks/gpu.py --fetch wheels, then "
            "pip install --no-deps --no-index wheels/*.whl"
        )


def provenance(size: str, peak: float, commit: str | None) -> dict[str, Any]:
    """Return what the figures depend on; those of another machine or commit are not mixed in.

    Args:
        size: A key of `gpu_cells.SIZES`.
        peak: Operations per second.
        commit: What is measured, if git cannot tell.
    """
    from harness.speed import measured_peak

    from lamina.measure.provenance import git_state, package_versions
    from lamina.runtime.device import device_name

    dtype = "bfloat16" if size == "8b" else "float32"
    return {
        "size": size,
        "device": device_name(),
        "versions": package_versions(),
        "commit": commit or git_state()["sha"],
        "peak": peak,
        "matrix_product": measured_peak(dtype),
        "machine": machine(),
    }


FIXED = ("size", "device", "versions", "commit")
"""Must be the same in every slice."""


class Notebook:
    """The JSON file of finished cells, written after every cell."""

    def __init__(self, path: Path, about: dict[str, Any], again: bool) -> None:
        """Continue a file, or start one."""
        self.path, self.content = path, {**about, "cells": {}}
        if path.is_file() and not again:
            before = json.loads(path.read_text())
            other = [name for name in FIXED if before[name] != about[name]]
            if other:
                sys.exit(
                    f"error: {path} was measured with another {', '.join(other)}: use another "
                    "--json, or --again to start over"
                )
            self.content = before

    def found(self, cells: "Sequence[Cell]") -> "dict[Cell, dict[str, Any]]":
        """Return the finished ones of some cells."""
        done = self.content["cells"]
        return {cell: done[str(cell)] for cell in cells if str(cell) in done}

    def keep(self, section: str, name: str, figures: dict[str, Any]) -> None:
        """Add a cell, a profile or a scan, and rewrite the file atomically."""
        self.content.setdefault(section, {})[name] = figures
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.content, indent=2) + "\n")
        temporary.replace(self.path)


def work(bench: "Bench", cells: "Sequence[Cell]", notebook: Notebook, until: float) -> None:
    """Measure the remaining cells, as far as the time allows."""
    from harness.gpu_cells import PLAIN

    taken: dict[str, float] = {}
    for cell in cells:
        done = notebook.found(cells)
        if cell in done:
            continue
        left = until - time.monotonic()
        if left < taken.get(cell.adapter, FIRST_GUESS if bench.size.bf16 else 0.0):
            return
        started, twin = time.monotonic(), done.get(cell.twin, {})
        figures: dict[str, Any] | None
        if cell.backend == PLAIN and "error: kernels=" in twin.get("reason", ""):
            figures = twin  # if Lamina finds no such kernels, neither does TRL
        else:
            figures = bench.run(cell, twin.get("attention") or "sdpa", left, profile=False)
        if figures is None:
            print(f"{cell}: stopped after {left:.0f} s, left to the next slice")
            return
        took, rate = time.monotonic() - started, figures.get("tokens_per_second")
        if rate is not None:
            taken[cell.adapter] = took
        notebook.keep("cells", str(cell), {**figures, "took": took})
        print(f"{cell}: {figures['reason'] if rate is None else f'{rate:,.0f} tokens/s'}")


def profile(bench: "Bench", cells: "Sequence[Cell]", notebook: Notebook, until: float) -> None:
    """Profile five steps of some cells; print where their time goes."""
    done = notebook.found([cell.twin for cell in cells])
    for cell in cells:
        attention = done.get(cell.twin, {}).get("attention") or "sdpa"
        found = bench.run(cell, attention, until - time.monotonic(), profile=True)
        if found is None:
            return
        notebook.keep("profiles", str(cell), found)
        if (of := found.get("profile")) is None:
            print(f"{cell}: {found['reason']}")
            continue
        shares = {kind: spent / of["wall_seconds"] for kind, spent in of["kinds"].items()}
        listed = ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items())
        print(f"{cell}: {of['wall_seconds'] / of['steps']:.3f} s a step; {listed}")


def scan(bench: "Bench", tokens: Sequence[str], notebook: Notebook, until: float) -> None:
    """Scan with layers read when they are needed, and with all of them on the GPU."""
    for wanted, stream in product(tokens, (True, False)):
        found = bench.scan(wanted, stream, until - time.monotonic())
        if found is None:
            return
        name = f"{wanted} tokens, {'layers read' if stream else 'all layers held'}"
        notebook.keep("scans", name, found)
        print(f"{name}: {found.get('reason') or format(found['seconds'], '.1f') + ' s'}")


def main() -> None:
    """Measure, show, judge."""
    given = parsed()
    if given.fetch:
        fetch(given.fetch)
        return
    began = time.monotonic()
    refuse_missing()
    from harness.gpu_cells import SIZES, Bench, matrix
    from harness.gpu_table import goals, markdown
    from harness.random_model import LAYERS
    from harness.speed import machine_peak

    name = "tiny" if given.tiny else "8b"
    size = SIZES[name]
    folder = given.folder / name
    peak = machine_peak("bfloat16" if size.bf16 else "float32")
    bench = Bench(folder=folder, size=size, peak=peak)
    bench.prepare()
    default = folder / "gpu.json" if given.tiny else HERE / "results" / "gpu.json"
    notebook = Notebook(given.json or default, provenance(name, peak, given.commit), given.again)
    cells = list(matrix(given.backends, given.kernels, given.adapters, given.keep_layers))
    if given.profile:
        profile(bench, cells, notebook, began + given.budget)
    elif given.scan:
        scan(bench, given.scan, notebook, began + given.budget)
    if given.profile or given.scan:
        return
    work(bench, cells, notebook, began + given.budget)
    found = notebook.found(cells)
    content = notebook.content
    print(f"\n{content['device']}, torch {content['versions']['torch']}, {content['commit']}\n")
    print(markdown(found))
    left = len(cells) - len(found)
    print(f"\n{left} of {len(cells)} cells are left: run the command again" if left else "")
    failed = [cell for cell, figures in found.items() if figures.get("failed")]
    judged = not given.tiny and AIMED_AT in content["device"]
    aims = goals(found, LAYERS) if judged else []
    print("\n".join(map(str, aims)) or f"The aims are for one {AIMED_AT}: none is judged here.")
    if given.check and (left or failed or not all(aim.met for aim in aims)):
        sys.exit(1)


def parsed() -> Any:
    """Return the parsed command line."""
    parser = options("Measure Lamina on a GPU beside a plain TRL script.")
    default = Path(tempfile.gettempdir()) / "lamina-gpu"
    parser.add_argument("--folder", type=Path, default=default, help="for the model and the runs")
    parser.add_argument("--budget", type=float, default=540, help="seconds of one slice")
    parser.add_argument("--again", action="store_true", help="forget what was measured")
    parser.add_argument("--commit", metavar="SHA", help="of a copy without git")
    parser.add_argument("--tiny", action="store_true", help="the same with a tiny model, on a CPU")
    parser.add_argument("--profile", action="store_true", help="of five steps, instead of speed")
    parser.add_argument("--scan", nargs="+", metavar="TOKENS", help="time lamina scan instead")
    parser.add_argument("--fetch", type=Path, metavar="FOLDER", help="fetch the wheels, and end")
    several: dict[str, Any] = {"nargs": "+", "metavar": "NAME"}
    backends = ["transformers", "plain TRL", "unsloth"]
    parser.add_argument("--backends", default=backends, choices=backends, **several)
    kernels = ["none", "liger"]
    parser.add_argument("--kernels", default=kernels, choices=kernels, **several)
    parser.add_argument("--adapters", default=["lora", "full"], choices=["lora", "full"], **several)
    layers: dict[str, Any] = {**several, "type": at_least(1), "metavar": "NUMBER"}
    parser.add_argument("--keep-layers", default=[36, 28, 24], **layers)
    return parser.parse_args()


if __name__ == "__main__":
    main()
