"""Runs on backend=unsloth: the quickstart, each variant, resuming, rehearsing, failing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from tests.conftest import NEEDS_UNSLOTH, ROOT, SHORT, Finished, environment, train
from tests.reload import loaded

pytestmark = NEEDS_UNSLOTH

RUN = (*SHORT, "backend=unsloth")
NO_PACKING = (
    "backend=unsloth: packing=false: on a CPU Unsloth keeps packed documents apart only by not "
    "packing them; each sequence is one document, so a step reads fewer tokens"
)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    done = train(tmp_path_factory.mktemp("quickstart") / "run", *RUN, "export.form=both")
    assert done.code == 0, done.errors
    return done


def test_the_quickstart_ends_with_the_usual_table(
    quickstart: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lamina.measure.summary import summary

    monkeypatch.chdir(quickstart.folder.parent)
    console = Console(width=80)
    with console.capture() as shown:
        console.print(summary(quickstart.result, Path("run")))
    assert quickstart.output == shown.get()
    for name in ("baseline loss", "reduced loss", "healed loss", "trained", "peak memory"):
        assert name in quickstart.output
    assert quickstart.result["provenance"]["backend"] == "unsloth"
    assert quickstart.result["provenance"]["versions"]["unsloth"] == "2026.10.9"


def test_that_nothing_is_packed_is_said_and_recorded(quickstart: Finished) -> None:
    assert quickstart.errors.splitlines()[0] == NO_PACKING
    assert quickstart.result["notes"] == [NO_PACKING]
    assert quickstart.result["settings"]["trainer.args.packing"] is False


def test_both_forms_of_final_load_with_plain_transformers(quickstart: Finished) -> None:
    for name in ("final", "final-merged"):
        found = loaded(quickstart, quickstart.final.with_name(name))
        assert found["loss"] == pytest.approx(quickstart.metrics["eval_loss"], abs=1e-5)
        assert found["layers"] == found["stack"] == 8


@pytest.mark.parametrize(
    ("overrides", "layers"),
    [
        (("model=dropped", "model.layer_to_drop=5"), 11),
        (("model=original", "adapter=full"), 12),
        (("model=pruned", "selector=uniform", "export.form=merged", "bf16=true"), 8),
    ],
    ids=["dropped", "original-full", "pruned-merged-bf16"],
)
def test_every_variant_is_healed(overrides: tuple[str, ...], layers: int, tmp_path: Path) -> None:
    done = train(tmp_path / "run", *RUN, *overrides)
    assert done.code == 0, done.errors
    found = loaded(done, done.final)
    close = 1e-5 if done.result["dtype"] == "float32" else 1e-2
    assert found["loss"] == pytest.approx(done.metrics["eval_loss"], abs=close)
    assert found["layers"] == found["stack"] == layers


def test_a_run_goes_on_from_its_last_checkpoint(quickstart: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(quickstart.folder, folder)
    for name in ("checkpoint-6", "final", "final-merged"):
        shutil.rmtree(folder / "checkpoints" / "pruned" / name)
    before = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**before, "status": "running", "final": None}))
    done = train(folder, *RUN, "export.form=both")
    assert done.code == 0, done.errors
    assert done.result["history"] == quickstart.result["history"]
    assert done.metrics["eval_loss"] == quickstart.metrics["eval_loss"]
    other = train(folder, *SHORT, "packing=false", "backend=transformers", "max_steps=9")
    assert other.code == 1
    assert "is of backend=unsloth, not transformers: give another hydra.run.dir" in other.errors


def test_a_rehearsal_takes_one_step_and_leaves_a_report(tmp_path: Path) -> None:
    done = train(tmp_path / "run", *RUN, "dry_run=true")
    assert done.code == 0, done.errors
    assert NO_PACKING in done.errors
    found = json.loads((tmp_path / "run" / "dry_run.json").read_text())
    assert found["step"]["loss"] > 0
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {
        ".hydra", "dry_run.json", "train.log", "unsloth_compiled_cache"
    }  # fmt: skip


PATCHED = """
import importlib.machinery, pathlib, sys

class Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module):
        super().exec_module(module)
        module.Unsloth.patches_models = True

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "lamina.heal.unsloth":
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            spec.loader = Loader(spec.loader.name, spec.loader.path)
            return spec

if sys.argv[:1] == ["-m"]:
    with pathlib.Path(__file__).with_name("started").open("a") as file:
        file.write(" ".join(sys.orig_argv[1:3]) + "\\n")
sys.meta_path.insert(0, Finder)
"""
"""A sitecustomize.py with which Unsloth patches models, as on a GPU, and each start is noted."""


def test_where_models_are_patched_they_are_measured_elsewhere(
    quickstart: Finished, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(PATCHED)
    paths = (str(tmp_path), str(ROOT / "src"), os.environ.get("PYTHONPATH", ""))
    caches = {"PYTHONPATH": os.pathsep.join(paths), "LAMINA_CACHE": str(tmp_path / "cache")}
    done = train(tmp_path / "run", *RUN, "export.form=both", **caches)
    assert done.code == 0, done.errors
    started = (tmp_path / "started").read_text().splitlines()
    assert started.count("-m lamina.measure.elsewhere") == 3
    for name in ("baseline_eval_loss", "reduced_eval_loss", "eval_loss", "eval_sample_loss"):
        assert done.metrics[name] == pytest.approx(quickstart.metrics[name], abs=1e-6), name
    assert done.result["samples"] == quickstart.result["samples"]
    assert done.result["history"] == quickstart.result["history"]


def test_an_error_of_the_run_is_one_line(tmp_path: Path) -> None:
    done = train(tmp_path / "run", *RUN, "adapter.target_modules=[nowhere]")
    said = (
        "trainer.args, adapter: Target modules {'nowhere'} not found in the base model. Please "
        "check the target modules and try again."
    )
    assert (done.code, done.errors.splitlines()[-1]) == (1, f"error: {said}")
    assert (done.result["status"], done.result["error"]) == ("failed", said)
    assert not (tmp_path / "run" / ".reduced").exists()


@pytest.mark.parametrize(
    ("whom", "by", "code", "said"),
    [
        (
            "command",
            signal.SIGINT,
            130,
            "interrupted; start the same command in the same folder to go on",
        ),
        (
            "child",
            signal.SIGKILL,
            1,
            "the run's process was ended by SIGKILL; often the machine's memory was short",
        ),
    ],
)
def test_a_run_and_its_process_end_together(
    whom: str, by: signal.Signals, code: int, said: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "train", f"hydra.run.dir={folder}", *RUN, "max_steps=100000"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        checkpoint = folder / "checkpoints" / "pruned" / "checkpoint-3"
        deadline = time.monotonic() + 120
        while not checkpoint.is_dir() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        (child,) = psutil.Process(process.pid).children()
        os.kill({"command": process.pid, "child": child.pid}[whom], by)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert errors.endswith(f"error: {said}\n")
    assert not child.is_running()
    result = json.loads((folder / "result.json").read_text())
    reason = "interrupted" if whom == "command" else said
    assert (result["status"], result["error"]) == ("failed", reason)
