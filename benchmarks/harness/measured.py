"""One job of loading.py or scan.py in a fresh process, and the time, disk and memory it takes.

    python benchmarks/harness/measured.py RECORD.json JOB MODEL NUMBER OUTPUT

NUMBER is how many of the first layers stay, or how many tokens a scan takes.

`measure` starts this file as a command. RECORD.json then holds that process's counters after the
imports and at the end, even if the job fails. Modules that a job imports later count as its own.
Peak memory is the kernel's VmHWM, reset after the imports. ru_maxrss cannot be reset, and it
survives exec, so a child would start with its parent's.

mergekit's environment runs this file, too: the top imports the standard library alone.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROC = Path("/proc/self")


@dataclass(frozen=True)
class Run:
    """What a job took: seconds, bytes of disk and of memory."""

    seconds: float
    """Of the whole process."""

    seconds_alone: float
    """From the end of the imports to the end of the job."""

    read: float
    """From the disk, after the imports."""

    written: float
    """After the imports."""

    peak: float
    """Of memory, above that after the imports."""

    peak_whole: float
    """Of memory, imports included."""

    failure: str
    """The last line printed, if the job failed."""


def measure(python: Path, job: str, model: Path, number: int, folder: Path) -> Run:
    """Do a job in a fresh process, after evicting the model's files from the page cache.

    Args:
        python: The interpreter, possibly of another environment.
        job: A key of `JOBS`.
        model: Folder of the model.
        number: How many of its first layers stay, or how many tokens a scan takes.
        folder: An empty folder; the job writes to `out` in it.
    """
    evict(model)
    record, log = folder / "record.json", folder / "log"
    arguments = [str(argument) for argument in (record, job, model, number, folder / "out")]
    # With PYTHONPATH, another environment would mix its modules with this one's.
    left_out = {"PYTHONDONTWRITEBYTECODE", "PYTHONPATH" if python != Path(sys.executable) else ""}
    environment = {k: v for k, v in os.environ.items() if k not in left_out}
    environment["HF_HUB_OFFLINE"] = "1"
    started = time.perf_counter()
    with log.open("w") as file:
        done = subprocess.run(
            [python, __file__, *arguments], cwd=folder, env=environment, stdout=file, stderr=file
        )
    seconds = time.perf_counter() - started
    if not record.is_file():
        sys.exit(f"error: {job} failed:\n{log.read_text()[-3000:]}")
    failure = last_line(log.read_text()) if done.returncode != 0 else ""
    return noted(json.loads(record.read_text()), seconds, failure)


def evict(model: Path) -> None:
    """Take a model's files out of the page cache."""
    for path in model.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # pages that are not on the disk yet would stay
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def last_line(text: str) -> str:
    """Return the last line that is not empty."""
    return (text.strip().splitlines() or ["no output"])[-1].strip()


def noted(record: dict[str, dict[str, float]], seconds: float, failure: str) -> Run:
    """Turn a process's counters into the job's figures."""
    before, after = record["imported"], record["ended"]
    return Run(
        seconds=seconds,
        seconds_alone=after["time"] - before["time"],
        read=after["read"] - before["read"],
        written=after["written"] - before["written"],
        peak=after["peak"] - before["memory"],
        peak_whole=max(before["peak"], after["peak"]),
        failure=failure,
    )


def lamina_load(model: str, kept: int, _: str) -> None:
    """Load only the kept layers."""
    import torch

    from lamina.depth.loading import load_model
    from lamina.weights.source import resolve

    touch(load_model(resolve(model), range(kept), dtype=torch.bfloat16))


def load_delete(model: str, kept: int, _: str) -> None:
    """Load every layer, then delete."""
    touch(without_last_layers(model, kept))


def lamina_cut(model: str, kept: int, output: str) -> None:
    """Run the command `lamina cut`."""
    from lamina.cli import main

    choice = ["model=pruned", f"model.keep_layers={kept}"]
    sys.argv = ["lamina", "cut", f"model_name={model}", *choice, f"output={output}"]
    main()


def load_delete_save(model: str, kept: int, output: str) -> None:
    """Load every layer, delete, save what remains."""
    without_last_layers(model, kept).save_pretrained(output)


def mergekit(model: str, kept: int, output: str) -> None:
    """Run `mergekit-yaml` with its defaults, but without a tokenizer: the model has none."""
    from mergekit.scripts.run_yaml import main  # type: ignore[import-not-found]

    source = {"model": model, "layer_range": [0, kept]}
    merge = {"slices": [{"sources": [source]}], "merge_method": "passthrough", "dtype": "bfloat16"}
    file = Path(f"{output}.yml")
    file.write_text(json.dumps(merge))  # JSON is YAML, too
    sys.argv = ["mergekit-yaml", str(file), output, "--no-copy-tokenizer"]
    main()


def lamina_scan(model: str, tokens: int, output: str) -> None:
    """Score every removal, layer by layer from disk; write the scan's own cost figures."""
    import torch

    from lamina.scan.calibration import Windows
    from lamina.scan.layers import open_stack
    from lamina.scan.passes import Budget, score_removals
    from lamina.weights.source import resolve

    with open_stack(resolve(model), torch.bfloat16, "cpu") as stack:
        vocabulary = stack.shell.model.config.vocab_size
        ids = torch.randint(vocabulary, (max(1, tokens // 256), min(tokens, 256)))
        streamed = Budget(hold=False, windows=len(ids))
        windows = Windows(ids, None, torch.arange(ids.shape[1]).expand(ids.shape) > 0)
        _, cost = score_removals(stack, windows, streamed, sublayers=False)
    Path(output).write_text(json.dumps(vars(cost)))


def without_last_layers(path: str, kept: int) -> Any:
    """Load a whole model as transformers does, and delete the layers behind the kept ones."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    del model.model.layers[kept:]
    model.config.layer_types = model.config.layer_types[:kept]
    model.config.num_hidden_layers = kept
    return model


def touch(model: Any) -> None:
    """Use every weight: those of a mapped file are not in memory before that."""
    for parameter in model.parameters():
        parameter.sum()


@dataclass(frozen=True)
class Job:
    """A function, and the modules that count as its start-up."""

    do: Callable[[str, int, str], None]
    imports: tuple[str, ...]


TRANSFORMERS = (
    "torch",
    "safetensors.torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.qwen3.modeling_qwen3",
)
JOBS = {
    "lamina_load": Job(lamina_load, (*TRANSFORMERS, "lamina.depth.loading")),
    "load_delete": Job(load_delete, TRANSFORMERS),
    "lamina_cut": Job(
        lamina_cut, (*TRANSFORMERS, "lamina.commands.cut", "lamina.config.schema", "lamina.cli")
    ),
    "load_delete_save": Job(load_delete_save, TRANSFORMERS),
    "lamina_scan": Job(lamina_scan, (*TRANSFORMERS, "accelerate", "lamina.scan.passes")),
    "mergekit": Job(mergekit, (*TRANSFORMERS, "mergekit.scripts.run_yaml")),
}


def counters() -> dict[str, float]:
    """Return the time and this process's counters: bytes of the disk, bytes of memory."""
    io, status = fields("io"), fields("status")
    return {
        "time": time.time(),
        "read": int(io["read_bytes"]),
        "written": int(io["write_bytes"]),
        "memory": int(status["VmRSS"].split()[0]) * 1024,
        "peak": int(status["VmHWM"].split()[0]) * 1024,
    }


def fields(name: str) -> dict[str, str]:
    """Return the lines `key: value` of a file about this process."""
    lines = [line.split(":", 1) for line in (PROC / name).read_text().splitlines()]
    return {key: value.strip() for key, value in lines}


def main() -> None:
    """Import, count, do the job, count again."""
    record, name, model, number, output = sys.argv[1:]
    job = JOBS[name]
    for module in job.imports:
        importlib.import_module(module)
    imported = counters()
    (PROC / "clear_refs").write_text("5")  # sets VmHWM back to VmRSS
    try:
        job.do(model, int(number), output)
    finally:
        Path(record).write_text(json.dumps({"imported": imported, "ended": counters()}))


if __name__ == "__main__":
    main()
