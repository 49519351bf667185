"""The trainings that gpu.py compares: their sizes, rows and commands, and what each reached."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from harness.random_model import LAYERS, SHAPES, Shape
from harness.speed import RANK, by_hand

HERE = Path(__file__).resolve().parent
PLAIN, LOGGING_STEPS = "plain TRL", 5
LOG_END, LOG_KEPT = 400, 6000
"""Characters of a training's output that are its reason, and those kept if it failed."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a model and its batches are."""

    shape: Shape
    bf16: bool
    length: int
    """Tokens in a pack."""
    batch: Mapping[str, int]
    """Packs in a step, by adapter: as many as fit into 139 GiB without recomputation."""
    steps: int


SIZES = {
    "8b": Size(shape=SHAPES["8b"], bf16=True, length=4096, batch={"lora": 2, "full": 1}, steps=20),
    "tiny": Size(
        shape=Shape(
            hidden_size=32,
            intermediate_size=64,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            vocab_size=512,
        ),
        bf16=False,
        length=128,
        batch={"lora": 1, "full": 1},
        steps=12,
    ),
}


def write_rows(path: Path, size: Size) -> None:
    """Write texts of random letters, from an eighth of a pack to a whole one long.

    A letter is at most one token, so none is cut.
    """
    random, written, wanted = Random(1), 0, size.steps * max(size.batch.values()) * size.length
    lines = []
    while written < wanted:
        length = random.randint(size.length // 8, size.length - 8)
        text = "".join(random.choices("abcdefghijklmnopqrstuvwxyz0123456789 ", k=length))
        lines.append(json.dumps({"text": text}) + "\n")
        written += length
    path.write_text("".join(lines))


@dataclass(frozen=True, order=True)
class Cell:
    """One training of the table."""

    backend: str
    """transformers or unsloth, with Lamina; or plain TRL."""
    kernels: str
    adapter: str
    layers: int

    def __str__(self) -> str:
        """Return the name that its results are kept under."""
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
    """Yield all cells, those that the aims need first, each beside its peer."""
    for kept, adapter, kernel in product(layers, adapters, kernels):
        yield from (Cell(backend, kernel, adapter, kept) for backend in backends)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where and how the cells are run."""

    folder: Path
    """For the model, the rows and the trainings' output."""
    size: Size
    peak: float
    """Operations per second that the machine can reach."""

    @property
    def model(self) -> Path:
        """Folder of the model."""
        return self.folder / "model"

    def prepare(self) -> None:
        """Write the model and the rows unless they exist."""
        from transformers import AutoTokenizer

        from harness.random_model import generate
        from lamina.runtime.paths import asset

        generate(self.model, self.size.shape)
        AutoTokenizer.from_pretrained(asset("reference")).save_pretrained(self.model)
        for name in ("rows.jsonl", "held.jsonl"):  # Lamina evaluates no file that it trains
            write_rows(self.folder / name, self.size)

    def run(
        self, cell: Cell, attention: str, limit: float, *, profile: bool
    ) -> dict[str, Any] | None:
        """Train a cell in a process of its own.

        Args:
            cell: Which one.
            attention: transformers' name of the attention that plain TRL uses.
            limit: Seconds after which it is killed.
            profile: Also return the profile of five steps, which slows the training down.

        Returns:
            Its figures, or the reason why there are none; None if it was killed.
        """
        own = self.folder / "run"
        shutil.rmtree(own, ignore_errors=True)  # the weights that a killed cell left: 16 GB
        own.mkdir(parents=True)
        command = self._plain(cell, own, attention) if cell.backend == PLAIN else ours(self, cell)
        if profile:
            if cell.backend == "unsloth":
                return {"reason": "not profiled: Unsloth must be imported first"}
            command.insert(command.index(str(own / "stamps.json")), "--profile")
        log = own / "log"
        if not finished(command, own, log, limit):
            return None
        found = self._read(cell, own)
        if found is None:
            text = log.read_text()
            failed = "traceback" in text.lower()
            return {"reason": reason(text), "failed": failed, "log": text[-LOG_KEPT:] * failed}
        if profile:
            found["profile"] = (read(own / "stamps.json") or {})["profile"]
        shutil.rmtree(own)
        return found

    def _plain(self, cell: Cell, own: Path, attention: str) -> list[str]:
        import torch

        size, full = self.size, cell.adapter == "full"
        arguments = {
            "output_dir": str(own / "out"),
            "max_length": size.length,
            "learning_rate": 2e-4,
            "per_device_train_batch_size": size.batch[cell.adapter],
            "max_steps": size.steps,
            "eval_strategy": "no",
            "save_strategy": "no",
            "logging_steps": LOGGING_STEPS,
            "bf16": size.bf16,
            "optim": "adamw_torch_fused",
            "use_liger_kernel": cell.kernels == "liger",
        }
        settings = {
            "model": str(self.model),
            "loading": {
                "dtype": "bfloat16" if size.bf16 else "float32",
                "attn_implementation": attention,
                "device_map": {"": 0 if torch.cuda.is_available() else "cpu"},
            },
            "layers": cell.layers,
            "rows": {"train": str(self.folder / "rows.jsonl")},
            "rank": None if full else RANK,
            "arguments": arguments,
        }
        (own / "settings.json").write_text(json.dumps(settings))
        script = [str(HERE / "plain_trl.py"), str(own / "settings.json")]
        return [sys.executable, str(HERE / "stamped.py"), str(own / "stamps.json"), *script]

    def _read(self, cell: Cell, own: Path) -> dict[str, Any] | None:
        """Return a cell's figures, or None if it did not finish."""
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

    def scan(self, tokens: str, stream: bool, limit: float) -> dict[str, Any] | None:
        """Score every layer with `lamina scan`, in a process of its own.

        Args:
            tokens: scan.tokens.
            stream: Whether layers are read when they are needed, or all stay on the GPU.
            limit: Seconds after which it is killed.

        Returns:
            Its figures, or the reason why there are none; None if it was killed.
        """
        own, rows = self.folder / "run", self.folder / "rows.jsonl"
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir(parents=True)
        given = [f"model_name={self.model}", f"scan.tokens={tokens}", f"scan.stream={stream}"]
        given += ["data=jsonl", f"data.train={rows}", "scan.memory=100GB"]
        given += [f"max_seq_length={self.size.length}", f"bf16={self.size.bf16}", "logger=none"]
        main = "from lamina.cli import main; main()"
        command = [sys.executable, "-c", main, "scan", *given, f"hydra.run.dir={own}/out"]
        if not finished(command, own, own / "log", limit):
            return None
        found = read(own / "out" / "scan.json")
        if found is None:
            return {"reason": reason((own / "log").read_text())}
        names = ("num_tokens", "layer_forwards", "passes", "seconds", "head_seconds")
        return {name: found[name] for name in (*names, "peak_memory_bytes")}


def ours(bench: Bench, cell: Cell) -> list[str]:
    """Return the command that trains a cell with Lamina.

    Unsloth replaces TRL's trainer, so stamped.py would not find it: its figures come from
    result.json alone, as all of Lamina's here do.
    """
    size, own, rows = bench.size, bench.folder / "run", bench.folder / "rows.jsonl"
    model = "original" if cell.layers == LAYERS else "layers"
    given = [f"model.keep=0-{cell.layers}"] if model == "layers" else []
    given += [f"model={model}", f"model_name={bench.model}", f"backend={cell.backend}"]
    given += [f"kernels={cell.kernels}", f"adapter={cell.adapter}", f"lora.r={RANK}"]
    held = bench.folder / "held.jsonl"
    given += ["data=jsonl", f"data.train={rows}", f"data.eval={held}", f"hydra.run.dir={own}/out"]
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
    """Run a command; return whether it ended by itself within `limit` seconds."""
    # Lamina may not be installed, and PYTHONPATH may be relative.
    path = os.pathsep.join([str(HERE.parents[1] / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    environment["HF_DATASETS_CACHE"] = str(own / "cache")
    environment["LAMINA_CACHE"] = str(own / "lamina")  # a scan's scores would be read from it
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
    """Return why a training failed: the error it printed, or its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [number for number, line in enumerate(lines) if line.startswith("error:")]
    return "; ".join(lines[errors[-1] if errors else -1 :])[:LOG_END] or "it printed nothing"


def read(path: Path) -> dict[str, Any] | None:
    """Return a JSON file's content, or None if it does not exist."""
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text())
    return content
