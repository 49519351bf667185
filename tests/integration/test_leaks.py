"""Nothing leaks from one job of a sweep into the next, not even from failed jobs."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lamina.measure.results import read_result
from lamina.runtime.device import peak_memory_bytes, reset_peak_memory
from tests.conftest import SHORT, Finished, run, train

QUICK = (*SHORT, "model=dropped", "max_steps=3", "evaluation.num_samples=1", "num_threads=1")
RATES = ("2e-3", "1e38", "3e-3", "1e-3")
"""Of four jobs: the first completes, two fail, and the last completes."""

PROBE = """
import gc, json, os, signal, sys, threading, weakref
from functools import wraps
from pathlib import Path

from lamina.commands import train
from lamina.heal.libraries import import_heavy
from lamina import run

import_heavy()
import torch, transformers, wandb
import transformers.models.qwen3.modeling_qwen3

LIBRARIES = ("transformers", "trl", "peft", "torch.nn", "torch.optim", "accelerate", "datasets")
made, states = weakref.WeakSet(), []


def noted(construct):
    @wraps(construct)
    def construct_and_note(self, *arguments, **options):
        made.add(self)
        construct(self, *arguments, **options)

    return construct_and_note


for kind in (transformers.PreTrainedModel, transformers.Trainer, torch.optim.Optimizer):
    kind.__init__ = noted(kind.__init__)


def state():
    opened = [os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()]
    return {
        "alive": sorted(type(found).__name__ for found in made),
        "kept for ever": gc.get_freeze_count(),
        "wandb": str(wandb.run),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "files": sorted(name for name in opened if "/jobs/" in name),
        "signals": {number: str(signal.getsignal(number)) for number in signal.valid_signals()},
        "environment": dict(os.environ),
        "torch": [torch.get_num_threads(), str(torch.get_default_dtype()),
                  torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled()],
    }


def classes():
    found = [kind for kind in gc.get_objects() if issubclass(type(kind), type)]
    return {
        f"{kind.__module__}.{kind.__qualname__}.{name}": value
        for kind in found if str(kind.__module__).startswith(LIBRARIES)
        for name, value in vars(kind).items() if callable(value) or hasattr(value, "__get__")
    }


run_job, keep = train.run_job, run.keep


def run_and_look(*arguments):
    states.append(state())
    return run_job(*arguments)


def keep_or_fail(experiment, *arguments):
    if experiment.learning_rate == 3e-3:
        raise RuntimeError("made to fail")
    return keep(experiment, *arguments)


train.run_job, run.keep = run_and_look, keep_or_fail
gc.unfreeze()  # get_objects would not list the classes
before, handlers = classes(), state()["signals"]
gc.freeze()
try:
    train.main()
finally:
    states.append(state())
    gc.unfreeze()
    after = classes()
    changed = [name for name in before if name in after and before[name] is not after[name]]
    seen = {"states": states, "classes": len(before), "changed": changed, "handlers": handlers}
    Path("seen.json").write_text(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep's; seen.json beside it holds the state before each job and at the end."""
    folder = tmp_path_factory.mktemp("leaks") / "jobs"
    rates = f"learning_rate={','.join(RATES)}"
    given = ["--multirun", f"hydra.sweep.dir={folder}", *QUICK, rates, "logger=both"]
    done = run("-c", PROBE, *given, cwd=folder.parent)
    results = [read_result(folder / str(number)) or {} for number in range(4)]
    statuses = [result.get("status") for result in results]
    assert statuses == ["completed", "failed", "failed", "completed"], done.stderr
    assert "loss is nan" in results[1]["error"]
    assert results[2]["error"] == "RuntimeError: made to fail"
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(folder.with_name("seen.json").read_text())
    return content


def test_models_trainers_and_optimizers_of_earlier_jobs_are_freed(seen: dict[str, Any]) -> None:
    assert [state["alive"] for state in seen["states"]] == [[]] * 5
    counts = [state["kept for ever"] for state in seen["states"]]
    assert max(counts) == counts[0]


def test_runs_files_and_threads_of_earlier_jobs_are_closed(seen: dict[str, Any]) -> None:
    states = seen["states"]
    assert [state["wandb"] for state in states] == ["None"] * 5
    for number, state in enumerate(states[:4]):
        own = (f"/jobs/{number}/", "/jobs/.lock")  # the sweep locks its folder to the end
        assert all(any(part in name for part in own) for name in state["files"])
    assert states[4]["files"] == []
    # The first job starts the threads that libraries keep for the whole process.
    assert all(state["threads"] == states[1]["threads"] for state in states[1:])


def test_libraries_and_process_are_unchanged(seen: dict[str, Any]) -> None:
    assert seen["classes"] > 1000
    assert seen["changed"] == []
    first, *_, last = seen["states"]
    assert last["signals"] == seen["handlers"]
    for state in seen["states"]:
        assert state is last or state["signals"] == first["signals"]
        assert state["torch"] == first["torch"]
        changed = state["environment"].items() ^ first["environment"].items()
        assert {name for name, _ in changed} <= {"TOKENIZERS_PARALLELISM", "WANDB_SERVICE"}


def test_a_job_after_failed_ones_equals_the_same_job_alone(folder: Path, tmp_path: Path) -> None:
    alone = train(tmp_path / "alone", *QUICK, f"learning_rate={RATES[3]}")
    assert alone.code == 0, alone.errors
    job = Finished(0, "", "", folder / "3")
    assert job.result["history"] == alone.result["history"]
    assert job.result["samples"] == alone.result["samples"]
    for name in ("baseline_eval_loss", "reduced_eval_loss", "eval_loss"):
        assert job.metrics[name] == alone.metrics[name]
    for path in alone.final.glob("*.safetensors"):
        assert path.read_bytes() == (job.final / path.name).read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets the peak")
def test_memory_of_an_earlier_job_is_not_counted() -> None:
    size, _ = 2**28, peak_memory_bytes()  # which imports torch
    block = bytearray(size)
    block[::4096] = b"x" * (size // 4096)
    del block
    before = peak_memory_bytes()
    reset_peak_memory()
    assert peak_memory_bytes() < before - size / 2
    blocks = [b"x" * 100_000 for _ in range(size // 100_000)]  # of a size that stays in the heap
    before, last = peak_memory_bytes(), blocks[-1]
    del blocks
    reset_peak_memory()
    assert peak_memory_bytes() < before - size / 2
    assert last
