"""The trainings that gpu.py compares: what each is, its command, and what it reached."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from generated import LAYERS
from gpu_sizes import Size, write_rows
from throughput import by_hand

HERE = Path(__file__).resolve().parent
PLAIN, RANK, LOGGING_STEPS = "plain TRL", 16, 5
LOG_END = 400
"""Characters of a failed training's output that are kept."""


@dataclass(frozen=True, order=True)
class Cell:
    """One training of the table."""

    backend: str
    """transformers or unsloth, with Lamina; or plain TRL."""
    kernels: str
    adapter: str
    layers: int

    def __str__(self) -> str:
        """Name it; results are kept under this name."""
        return f"{self.backend}, kernels={self.kernels}, {self.adapter}, {self.layers} layers"

    @property
    def peer(self) -> "Cell":
        """The same training with plain TRL."""
        return Cell(PLAIN, self.kernels, self.adapter, self.layers)

    @property
    def twin(self) -> "Cell":
        """The same training with Lamina and transformers' model."""
        return Cell("transformers", self.kernels, self.adapter, self.layers)

    @property
    def whole(self) -> "Cell":
        """The same training with every layer."""
        return Cell(self.backend, self.kernels, self.adapter, LAYERS)


def matrix(
    backends: Sequence[str], kernels: Sequence[str], adapters: Sequence[str], layers: Sequence[int]
) -> Iterator[Cell]:
    """Give all cells, those that the aims need first, and each beside its peer."""
    for kept, adapter, kernel in product(layers, adapters, kernels):
        yield from (Cell(backend, kernel, adapter, kept) for backend in (*backends, PLAIN))


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where and how the cells are run."""

    folder: Path
    """For the model, the rows and what the trainings leave."""
    size: Size
    peak: float
    """Operations a second that the machine computes at most."""

    @property
    def model(self) -> Path:
        """Folder of the model."""
        return self.folder / "model"

    def prepare(self) -> None:
        """Write the model and the rows, where they are not there yet."""
        from generated import generate
        from transformers import AutoTokenizer

        from lamina.runtime.paths import asset

        generate(self.model, self.size.shape)
        AutoTokenizer.from_pretrained(asset("reference")).save_pretrained(self.model)
        write_rows(self.folder / "rows.jsonl", self.size)

    def run(self, cell: Cell, attention: str, limit: float) -> dict[str, Any] | None:
        """Train a cell in a process of its own.

        Args:
            cell: Which one.
            attention: What a plain TRL script is to use: transformers' name.
            limit: Seconds after which it is stopped.

        Returns:
            Its figures, or the reason why there are none; None where it was stopped.
        """
        own = self.folder / "run"
        remove(own)
        own.mkdir(parents=True)
        command = self._plain(cell, own, attention) if cell.backend == PLAIN else ours(self, cell)
        log = own / "log"
        if not finished(command, own, log, limit):
            return None
        found = self._read(cell, own)
        if found is None:
            text = log.read_text()
            return {"reason": reason(text), "failed": "traceback" in text.lower()}
        remove(own)
        return found

    def _plain(self, cell: Cell, own: Path, attention: str) -> list[str]:
        size = self.size
        asked = {
            "model": str(self.model),
            "rows": str(self.folder / "rows.jsonl"),
            "output_dir": str(own / "out"),
            "layers": cell.layers,
            "adapter": cell.adapter,
            "rank": RANK,
            "attention": attention,
            "liger": cell.kernels == "liger",
            "bf16": size.bf16,
            "length": size.length,
            "batch": size.batch[cell.adapter],
            "steps": size.steps,
            "logging_steps": LOGGING_STEPS,
        }
        (own / "settings.json").write_text(json.dumps(asked))
        script = [str(HERE / "gpu_plain.py"), str(own / "settings.json")]
        return [sys.executable, str(HERE / "stamped.py"), str(own / "stamps.json"), *script]

    def _read(self, cell: Cell, own: Path) -> dict[str, Any] | None:
        """Return a cell's figures, or nothing if it did not come to its end."""
        stamps = read(own / "stamps.json")
        if cell.backend != PLAIN:
            result = read(own / "out" / "result.json")
            if result is None or result["status"] != "completed":
                return None
            names = ("tokens_per_second", "flops_per_second", "mfu", "seconds", "peak_memory_bytes")
            found = {name: result["metrics"][name] for name in names}
            found["mfu"] = found["mfu"] or found["flops_per_second"] / self.peak
            return {**found, "attention": stamps and stamps["attention"]}
        if stamps is None:
            return None
        full, config = cell.adapter == "full", asdict(self.size.shape)
        speed = by_hand(stamps, config, layers=cell.layers, full=full, peak=self.peak)
        return {
            "tokens_per_second": speed.tokens_per_second,
            "flops_per_second": speed.mfu * self.peak,
            "mfu": speed.mfu,
            "peak_memory_bytes": stamps["memory"],
            "attention": stamps["attention"],
        }


def ours(bench: Bench, cell: Cell) -> list[str]:
    """Return the command that trains a cell with Lamina.

    Unsloth puts a trainer of its own in the place of TRL's, which stamped.py would not find: its
    figures are those of result.json alone, as all of Lamina's here.
    """
    size, own, rows = bench.size, bench.folder / "run", bench.folder / "rows.jsonl"
    model = "original" if cell.layers == LAYERS else "layers"
    given = [f"model.keep=0-{cell.layers}"] if model == "layers" else []
    given += [f"model={model}", f"model_name={bench.model}", f"backend={cell.backend}"]
    given += [f"kernels={cell.kernels}", f"adapter={cell.adapter}", f"lora.r={RANK}"]
    given += ["data=jsonl", f"data.train={rows}", f"data.eval={rows}", f"hydra.run.dir={own}/out"]
    given += [f"max_seq_length={size.length}", f"lora.alpha={RANK}", "learning_rate=2e-4"]
    given += [f"per_device_train_batch_size={size.batch[cell.adapter]}", f"max_steps={size.steps}"]
    given += [f"bf16={str(size.bf16).lower()}", f"logging_steps={LOGGING_STEPS}"]
    given += "gradient_accumulation_steps=1 gradient_checkpointing=false packing=true".split()
    given += "evaluation=none logger=none trainer.args.load_best_model_at_end=false".split()
    given += "trainer.args.eval_strategy=no trainer.args.save_strategy=no".split()
    if cell.backend == "unsloth":
        return [sys.executable, "-m", "train", *given]
    return [sys.executable, str(HERE / "stamped.py"), str(own / "stamps.json"), "train", *given]


def finished(command: Sequence[str], own: Path, log: Path, limit: float) -> bool:
    """Run a command; return whether it ended by itself within some seconds."""
    # Also where Lamina is not installed, and the path is a relative one.
    path = os.pathsep.join([str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    environment["HF_DATASETS_CACHE"] = str(own / "cache")
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=own, env=environment, stdout=file, stderr=file, start_new_session=True
        )
        try:
            process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return False
    return True


def reason(text: str) -> str:
    """Return why a training ended early, from what it printed: its error, or its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [number for number, line in enumerate(lines) if line.startswith("error:")]
    return "; ".join(lines[errors[-1] if errors else -1 :])[:LOG_END] or "it printed nothing"


def read(path: Path) -> dict[str, Any] | None:
    """Return a JSON file's content, or nothing where there is none."""
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def remove(folder: Path) -> None:
    """Remove what an earlier cell left: the weights of one are 16 GB."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
