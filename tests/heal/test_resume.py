"""Which checkpoint a run resumes from, and which folders it refuses."""

import json
import random
import re
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import save_file

from lamina.errors import ConfigError, OutputError
from lamina.heal.resume import GivenCheckpoint, claim_folder, given_checkpoint, refuse_changes
from lamina.measure.results import Record

NOW = {"kept_layers": [0, 1], "adapter": "lora", "base": "abc"}


STATE = {
    "max_steps": 9,
    "num_input_tokens_seen": 1,
    "epoch": 0.5,
    "log_history": [],
    "stateful_callbacks": {},
    "best_metric": None,
    "best_global_step": None,
}
"""Fields of each trainer_state.json."""


@cache
def training_state() -> dict[str, bytes]:
    """What a training of no weights saves, by file."""
    state = (3, tuple(random.getstate()[1]), None), numpy.random.get_state()
    generators = dict(zip(("python", "numpy"), state, strict=True))
    parts = {
        "optimizer.pt": {"state": {}, "param_groups": [{"params": []}]},
        "scheduler.pt": {"last_epoch": 1},
        "rng_state.pth": {**generators, "cpu": torch.get_rng_state()},
    }
    written = {name: BytesIO() for name in parts}
    for name, content in parts.items():
        torch.save(content, written[name])
    return {name: file.getvalue() for name, file in written.items()}


def checkpoint(folder: Path, step: int, *, best: int | None = None, whole: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    save_file({"lora_A": torch.tensor([float(step)])}, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    for name, content in training_state().items():
        (path / name).write_bytes(content)
    known = str(Path("/gone") / f"checkpoint-{best}") if best else None
    state = json.dumps({"global_step": step, "best_model_checkpoint": known, **STATE})
    (path / "trainer_state.json").write_text(state if whole else state[:9])
    return path


def run(folder: Path, *steps: int, **changes: Any) -> Path:
    """Make a run folder; return the folder of its checkpoints."""
    inside = folder / "checkpoints" / "pruned"
    for step in steps:
        checkpoint(inside, step, best=steps[0])
    record = Record(folder, []).content
    result = {**record, "model_type": "pruned", "settings": {"base": "abc"}, **NOW, **changes}
    (folder / "result.json").write_text(json.dumps(result))
    return inside


def claimed(folder: Path, resume: str, before: dict[str, Any] = NOW) -> Path | None:
    run_dir = folder.parents[1]
    return claim_folder(folder, run_dir, resume, given_checkpoint(resume), before, NOW)


@pytest.mark.parametrize("given", ["", "checkpoints/pruned/checkpoint-6", "checkpoints/pruned"])
def test_a_named_checkpoint_is_copied_into_the_run_folder(tmp_path: Path, given: str) -> None:
    theirs = run(tmp_path / "theirs", 3, 6)
    checkpoint(theirs, 9, whole=False)
    ours = tmp_path / "ours" / "checkpoints" / "pruned"
    path = str(tmp_path / "theirs" / given)
    assert claimed(ours, path) == ours / "checkpoint-6"
    # The best one comes along, wherever it was when saved.
    assert sorted(each.name for each in ours.iterdir()) == ["checkpoint-3", "checkpoint-6"]
    for each in ours.rglob("*.*"):
        assert each.samefile(theirs / each.relative_to(ours))


def test_the_same_command_again_resumes_from_its_own_checkpoint(tmp_path: Path) -> None:
    run(tmp_path / "theirs", 3)
    ours = tmp_path / "ours" / "checkpoints" / "pruned"
    given = str(tmp_path / "theirs")
    claimed(ours, given)
    later = checkpoint(ours, 9, best=3)
    assert claimed(ours, given, {"started_from": given}) == later


def test_a_path_is_refused_if_the_run_has_its_own_checkpoint(tmp_path: Path) -> None:
    run(tmp_path / "theirs", 3)
    ours = run(tmp_path / "ours", 2, 4)
    before = json.loads((tmp_path / "ours" / "result.json").read_text())
    with pytest.raises(OutputError, match=rf"but {ours}/checkpoint-4 is there: use resume=auto"):
        claimed(ours, str(tmp_path / "theirs"), before)
    with pytest.raises(OutputError, match=r"or another hydra\.run\.dir"):
        claimed(ours, str(ours / "checkpoint-2"), before)
    assert claimed(ours, str(tmp_path / "ours"), before) == ours / "checkpoint-4"


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ({}, {"trainer.args.adam_beta2": 0.5}, "has trainer.args.adam_beta2=None, not 0.5: "),
        ({"trainer.args.adam_beta2": 0.5}, {}, "has trainer.args.adam_beta2=0.5, not None: "),
        ({"trainer.top_k": None}, {"trainer.top_k": 64}, "has trainer.top_k=None, not 64: "),
    ],
)
def test_a_setting_that_only_one_of_two_runs_has_is_a_change(
    before: dict[str, Any], now: dict[str, Any], message: str
) -> None:
    both = {"trainer.args.optim": "sgd"}
    with pytest.raises(OutputError, match=re.escape(message)):
        refuse_changes(Path("checkpoint-3"), {**both, **before}, {**both, **now}, "auto")
    refuse_changes(Path("checkpoint-3"), {}, {**both, **now}, "auto")  # of an older version


@pytest.mark.parametrize("key", NOW)
def test_a_path_to_another_variant_is_refused(tmp_path: Path, key: str) -> None:
    other: Any = [7] if key == "kept_layers" else "other"
    changes = {"settings": {"base": other}} if key == "base" else {key: other}
    theirs = run(tmp_path / "theirs", 3, **changes)
    ours = tmp_path / "ours" / "checkpoints" / "pruned"
    with pytest.raises(
        OutputError, match=re.escape(f"but {theirs}/checkpoint-3 has {key}={other}, not ")
    ):
        claimed(ours, str(tmp_path / "theirs"))
    assert not list(ours.iterdir())


def test_a_checkpoint_whose_best_weights_are_gone_is_refused(tmp_path: Path) -> None:
    ours = tmp_path / "ours" / "checkpoints" / "pruned"
    last = checkpoint(ours, 4, best=2)
    with pytest.raises(OutputError) as caught:
        claimed(ours, "auto")
    assert str(caught.value) == (
        f"{last} says that checkpoint-2 beside it has the best weights, but it is gone: "
        "restore it, or use another hydra.run.dir to start from scratch"
    )


def test_damaged_checkpoints_are_renamed(tmp_path: Path) -> None:
    ours = run(tmp_path / "ours", 2)
    checkpoint(ours, 4, whole=False)
    (ours / "checkpoint-of-mine").mkdir()
    assert claimed(ours, "auto") == ours / "checkpoint-2"
    assert sorted(each.name for each in ours.iterdir()) == [
        "checkpoint-2",
        "checkpoint-of-mine",
        "damaged-checkpoint-4",
    ]


def test_a_run_starts_without_a_whole_checkpoint(tmp_path: Path) -> None:
    ours = tmp_path / "ours" / "checkpoints" / "pruned"
    checkpoint(ours, 4, whole=False)
    assert claimed(ours, "auto") is None
    assert claimed(ours, "never") is None


@pytest.mark.parametrize("before", [{}, {"kept_layers": None, "status": "failed"}])
def test_a_checkpoint_without_a_record_of_its_layers_is_refused(
    before: dict[str, Any], tmp_path: Path
) -> None:
    ours = tmp_path / "ours" / "checkpoints" / "pruned"
    last = checkpoint(ours, 4)
    with pytest.raises(OutputError) as caught:
        claimed(ours, "auto", before)
    assert str(caught.value) == (
        f"resume=auto, but no result.json in {tmp_path}/ours says which layers and settings {last} "
        f"has: remove {ours} to start from scratch"
    )


def test_a_folder_beside_a_run_belongs_to_one_run_however_it_is_written(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "two" / "linked").symlink_to(tmp_path / "shared")
    one, two = tmp_path / "one", tmp_path / "two"
    checkpoint(one / "../shared/pruned", 3)
    (tmp_path / "shared/pruned/run.json").write_text(json.dumps({"run": str(one)}))
    assert claim_folder(one / "../shared/pruned", one, "auto", None, NOW, NOW)
    for folder in (two / "../shared/pruned", two / "linked/pruned"):
        with pytest.raises(OutputError, match=f"holds the result of {one}, which is never"):
            claim_folder(folder, two, "auto", None, NOW, NOW)


def test_a_path_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    inside = run(tmp_path / "run", 3)
    cut = checkpoint(inside, 6, whole=False)
    lonely = checkpoint(tmp_path / "lonely", 3)
    (tmp_path / "empty").mkdir()
    for path, said in (
        (tmp_path / "absent", "no such folder; use auto, never, or the folder of a run"),
        (
            cut,
            f"{cut}/trainer_state.json cannot be read as JSON: .*; use {inside}/checkpoint-3",
        ),
        (tmp_path / "empty", "there is no checkpoint; set resume=auto to start"),
        (
            lonely,
            f"no result.json above {lonely} says which layers and settings it has; "
            "keep checkpoints inside their run's folder",
        ),
    ):
        with pytest.raises(ConfigError, match=f"resume={path}: {said}"):
            given_checkpoint(str(path))
    assert (given_checkpoint("auto"), given_checkpoint("never")) == (None, None)
    found = given_checkpoint(str(inside / "checkpoint-3"))
    assert isinstance(found, GivenCheckpoint)
    assert found.recorded["base"] == "abc"


def test_a_folder_keeps_its_owner_if_the_owner_dies_while_claiming_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, run, another = tmp_path / "shared" / "pruned", tmp_path / "run", tmp_path / "another"
    claim_folder(folder, run, "auto", None, NOW, NOW)
    checkpoint(folder, 3)

    def write_half(path: Path, content: Any, *_: Any, **__: Any) -> None:
        with path.open("w") as file:
            file.write(str(content)[:3])
        raise KeyboardInterrupt

    for name in ("write_bytes", "write_text"):
        monkeypatch.setattr(Path, name, write_half)
    with pytest.raises(KeyboardInterrupt):
        claim_folder(folder, run, "auto", None, NOW, NOW)
    monkeypatch.undo()
    claim_folder(folder, run, "auto", None, NOW, NOW)
    with pytest.raises(OutputError, match=f"holds the result of {run}, which is never overwritten"):
        claim_folder(folder, another, "auto", None, {}, NOW)
