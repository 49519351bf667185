"""Runs on backend=unsloth: the quickstart, resumed, and measured in separate processes."""

import json
import os
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from tests.conftest import NEEDS_UNSLOTH, ROOT, SHORT, Finished, train
from tests.reload import loaded

pytestmark = NEEDS_UNSLOTH

RUN = (*SHORT, "backend=unsloth")
NO_PACKING = (
    "backend=unsloth sets packing=false: on a CPU Unsloth cannot keep packed documents apart; each "
    "sequence is one document, so a step reads fewer tokens"
)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    done = train(tmp_path_factory.mktemp("quickstart") / "run", *RUN, "export.form=both")
    assert done.code == 0, done.errors
    return done


def test_the_quickstart_ends_with_the_usual_table(
    quickstart: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lamina.report.run_summary import summary

    monkeypatch.chdir(quickstart.folder.parent)
    console = Console(width=80)
    with console.capture() as shown:
        console.print(summary(quickstart.result, Path("run")))
    assert quickstart.output == shown.get()
    for name in ("baseline loss", "reduced loss", "healed loss", "trained", "peak memory"):
        assert name in quickstart.output
    assert quickstart.result["provenance"]["backend"] == "unsloth"
    assert quickstart.result["provenance"]["versions"]["unsloth"] == "2026.10.9"


def test_the_lack_of_packing_is_logged_and_recorded(quickstart: Finished) -> None:
    assert quickstart.refusal.splitlines()[0] == NO_PACKING
    assert quickstart.result["notes"] == [NO_PACKING]
    assert quickstart.result["settings"]["trainer.args.packing"] is False


def test_both_forms_of_final_load_with_plain_transformers(quickstart: Finished) -> None:
    for name in ("final", "final-merged"):
        found = loaded(quickstart, quickstart.final.with_name(name))
        assert found["loss"] == pytest.approx(quickstart.metrics["eval_loss"], abs=1e-5)
        assert found["layers"] == found["stack"] == 8


def test_a_run_resumes_from_its_last_checkpoint(quickstart: Finished, tmp_path: Path) -> None:
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
    assert "has backend=unsloth, not transformers: use another hydra.run.dir" in other.errors


PATCHED = """
import importlib.machinery, pathlib, sys

class Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module):
        super().exec_module(module)
        module.Unsloth.patches_model_classes = True

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "lamina.heal.backends.unsloth":
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            spec.loader = Loader(spec.loader.name, spec.loader.path)
            return spec

if sys.argv[:1] == ["-m"]:
    with pathlib.Path(__file__).with_name("started").open("a") as file:
        file.write(" ".join(sys.orig_argv[1:3]) + "\\n")
sys.meta_path.insert(0, Finder)
"""
"""A sitecustomize.py that lets Unsloth patch models, as on a GPU, and logs each start."""


def test_patched_models_are_measured_in_separate_processes(
    quickstart: Finished, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(PATCHED)
    paths = (str(tmp_path), str(ROOT / "src"), os.environ.get("PYTHONPATH", ""))
    caches = {"PYTHONPATH": os.pathsep.join(paths), "LAMINA_CACHE": str(tmp_path / "cache")}
    done = train(tmp_path / "run", *RUN, "export.form=both", **caches)
    assert done.code == 0, done.errors
    started = (tmp_path / "started").read_text().splitlines()
    # Before, after removal, final/, and the merged form, whose card has its own loss.
    assert started.count("-m lamina.measure.isolated") == 4
    for name in ("baseline_eval_loss", "reduced_eval_loss", "eval_loss", "eval_sample_loss"):
        assert done.metrics[name] == pytest.approx(quickstart.metrics[name], abs=1e-6), name
    assert done.result["samples"] == quickstart.result["samples"]
    assert done.result["history"] == quickstart.result["history"]
