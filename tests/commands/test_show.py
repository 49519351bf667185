"""`lamina show` of what is neither a model nor a sweep: a run, a failed one, a scan."""

import json
import shutil
from pathlib import Path

from lamina.measure.results import Record
from tests.conftest import REFERENCE, Finished, lamina


def test_a_runs_layers_and_figures_are_shown(pruned: Finished, tmp_path: Path) -> None:
    done = lamina("show", pruned.folder, cwd=tmp_path)
    assert done.code == 0, done.errors
    assert f"pruned: 8 of 12 layers of {REFERENCE}" in done.output
    loss = f"{pruned.metrics['eval_loss']:.4g}"
    assert [line for line in done.output.splitlines() if line.startswith("healed loss")] == [
        line for line in pruned.output.splitlines() if line.startswith("healed loss")
    ]
    assert loss in done.output


def test_a_folder_with_a_gguf_shows_its_layers_and_size(pruned: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    folder.mkdir()
    shutil.copy(pruned.final / "lamina.json", folder)
    (folder / "pruned-q8_0.gguf").write_bytes(b"0" * 2_500_000)
    done = lamina("show", folder, cwd=tmp_path, COLUMNS="300")
    assert done.code == 0, done.errors
    lines = done.output.splitlines()
    assert lines[0] == f"pruned: 8 of 12 layers of {REFERENCE}"
    assert lines[-1] == f"{folder / 'pruned-q8_0.gguf'}: 2.5 MB"


def test_a_run_without_final_says_how_it_ended(tmp_path: Path) -> None:
    record = Record(tmp_path / "run", ["model=dropped"])
    record.path.parent.mkdir()
    record.update(status="failed", error="no such layer")
    done = lamina("show", "run", cwd=tmp_path)
    assert (done.code, done.output) == (0, "model=dropped: failed\nno such layer\n")
    record.update(name="drop-3-lora", status="running", error=None)
    done = lamina("show", "run", cwd=tmp_path)
    assert (done.code, done.output) == (0, "drop-3-lora: running\nno final/ yet\n")


def test_a_scans_scores_are_shown_from_its_file(tmp_path: Path) -> None:
    given = ("experiment=quickstart", "scan.tokens=2k", f"hydra.run.dir={tmp_path / 'scan'}")
    scanned = lamina("scan", *given, cwd=tmp_path)
    assert scanned.code == 0, scanned.errors
    done = lamina("show", tmp_path / "scan", cwd=tmp_path)
    assert done.code == 0, done.errors
    assert done.output in scanned.output
    assert "baseline loss" in done.output
    (tmp_path / "scan" / "scan.json").write_text(json.dumps([])[:1])
    done = lamina("show", tmp_path / "scan", cwd=tmp_path)
    assert done.code == 1
    assert done.errors.startswith(
        f"error: {tmp_path / 'scan' / 'scan.json'} cannot be read as JSON"
    )
