"""Jobs of loading.py and scan.py in fresh processes, and the time, disk and memory they take.

    python benchmarks/harness/measured.py JOB

`prepared` starts this file as a command. It imports what the job needs, forks for each line of its
input, `[MODEL, NUMBER, FOLDER]`, and prints the exit status. NUMBER is how many of the first layers
stay, or how many tokens a scan takes. The fork does the job, and leaves its counters before and
after in FOLDER, even if it fails. Modules that a job imports later count as its own.
Peak memory is the kernel's VmHWM, reset before the job; the pages of libraries' code that the job
uses are part of it, as a fork maps them anew.

mergekit's environment runs this file, too: the top imports the standard library alone.
"""

import gc
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PROC = Path("/proc/self")
RECORD, LOG = "record.json", "log"
"""Files in a job's folder: its counters, and what it printed."""


@dataclass(frozen=True)
class Run:
    """What a job took: seconds, bytes of disk and of memory."""

    seconds: float
    """Of the imports and the job together."""

    seconds_alone: float
    """Of the job."""

    read: float
    """From the disk."""

    written: float
    """To the disk."""

    peak: float
    """Of memory, above that after the imports."""

    peak_whole: float
    """Of memory, imports included."""

    failure: str
    """The last line printed, if the job failed."""


class Measure(Protocol):
    """Does a job in a fresh process."""

    def __call__(self, model: Path, number: int, folder: Path, *, warm: bool = False) -> Run:
        """Start with the model's files out of the page cache, or, if warm, in it.

        Args:
            model: Folder of the model.
            number: How many of its first layers stay, or how many tokens a scan takes.
            folder: An empty folder; the job writes to `out` in it.
            warm: Where the model's files are.
        """


@contextmanager
def prepared(python: Path, job: str) -> Iterator[Measure]:
    """Import what a job of `JOBS` needs once, in an interpreter possibly of another environment."""
    # With PYTHONPATH, another environment would mix its modules with this one's.
    left_out = {"PYTHONDONTWRITEBYTECODE", "PYTHONPATH" if python != Path(sys.executable) else ""}
    environment = {k: v for k, v in os.environ.items() if k not in left_out}
    environment["HF_HUB_OFFLINE"] = "1"
    started = time.perf_counter()
    with subprocess.Popen(
        [python, __file__, job],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        orders, answers = process.stdin, process.stdout
        if not answers.readline():
            sys.exit(f"error: {job} failed: its imports did")
        imports = time.perf_counter() - started

        def measure(model: Path, number: int, folder: Path, *, warm: bool = False) -> Run:
            (fill if warm else evict)(model)
            orders.write(json.dumps([str(model), number, str(folder)]) + "\n")
            code, record, log = answers.readline().strip(), folder / RECORD, folder / LOG
            if not record.is_file():
                sys.exit(f"error: {job} failed:\n{log.read_text()[-3000:]}")
            failure = last_line(log.read_text()) if code != "0" else ""
            return noted(json.loads(record.read_text()), imports, failure)

        yield measure
        orders.close()


def evict(model: Path) -> None:
    """Take a model's files out of the page cache."""
    for path in model.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # pages that are not on the disk yet would stay
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def fill(model: Path) -> None:
    """Bring a model's files into the page cache."""
    for path in model.glob("*.safetensors"):
        with path.open("rb") as file:
            while file.read(2**24):
                pass


def last_line(text: str) -> str:
    """Return the last line that is not empty."""
    return (text.strip().splitlines() or ["no output"])[-1].strip()


def noted(record: dict[str, dict[str, float]], imports: float, failure: str) -> Run:
    """Turn a process's counters into the job's figures; `imports` took so many seconds."""
    before, after = record["imported"], record["ended"]
    alone = after["time"] - before["time"]
    return Run(
        seconds=imports + alone,
        seconds_alone=alone,
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
    """Import, then do the job in a fork for every line of the input."""
    job = JOBS[sys.argv[1]]
    for module in job.imports:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page of the imports
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            perform(job, *json.loads(line))
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def perform(job: Job, model: str, number: int, folder: str) -> None:
    """Count, do the job, count again."""
    os.chdir(folder)
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(log, stream)
    before = counters()
    (PROC / "clear_refs").write_text("5")  # sets VmHWM back to VmRSS
    try:
        job.do(model, number, str(Path(folder, "out")))
    finally:
        Path(folder, RECORD).write_text(json.dumps({"imported": before, "ended": counters()}))


if __name__ == "__main__":
    main()
