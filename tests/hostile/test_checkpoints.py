"""Damaged and hostile checkpoints: named in one line, and never taken for whole ones."""

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import SHORT, Finished, train
from tests.hostile.conftest import CANARY, Refused

GIVEN = (
    *SHORT,
    "max_steps=3",
    "eval_steps=1",
    "save_steps=1",
    "save_total_limit=9",
    "model.keep_layers=2",
    "evaluation=none",
    "logger=none",
    "lr_scheduler_type=constant",
)

Damage = Callable[[Path], Any]

STATE, OPTIMIZER, SCHEDULER, RNG = (
    "trainer_state.json",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PARTS = (STATE, CONFIG, WEIGHTS, OPTIMIZER, SCHEDULER, RNG)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run with three checkpoints."""
    done = train(tmp_path_factory.mktemp("trained") / "run", *GIVEN)
    assert done.code == 0, done.errors
    return done


@pytest.fixture
def run(trained: Finished, tmp_path: Path) -> Path:
    """A copy of that run, as if it had been killed after its last checkpoint."""
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    shutil.rmtree(folder / "checkpoints" / "pruned" / "final")
    (folder / "result.json").write_text(json.dumps({**trained.result, "status": "running"}))
    return folder


def last(run: Path) -> Path:
    return run / "checkpoints" / "pruned" / "checkpoint-3"


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    """Nobody writes to it: whoever opens it waits forever."""
    path.unlink()
    os.mkfifo(path)


def a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def flipped(path: Path) -> None:
    """Change one byte of the largest member of what torch.save wrote."""
    with zipfile.ZipFile(path) as file:
        largest = max(file.infolist(), key=lambda member: member.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + 200] ^= 1
    path.write_bytes(content)


def header_flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[20:40] = bytes(20)
    path.write_bytes(content)


class Spy:
    """Makes a file when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.canary = folder / CANARY

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


def hostile_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Spy(path.parent)))


def hostile_zip(path: Path) -> None:
    torch.save({"state": Spy(path.parent)}, path)


def saved(content: Any) -> Damage:
    return lambda path: torch.save(content, path)


def text(content: str, encoding: str = "utf-8") -> Damage:
    return lambda path: path.write_text(content, encoding=encoding)


def in_utf_16(path: Path) -> None:
    path.write_text(path.read_text(), encoding="utf-16")


def field(name: str, value: Any) -> Damage:
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))


def without(name: str) -> Damage:
    def remove(path: Path) -> None:
        content = json.loads(path.read_text())
        del content[name]
        path.write_text(json.dumps(content))

    return remove


def changed(name: str, value: Any) -> Damage:
    """Change one entry of what torch.save wrote."""

    def change(path: Path) -> None:
        content = torch.load(path, weights_only=False)
        torch.save({**content, name: value}, path)

    return change


MISSING, UNREADABLE = " is missing", " cannot be read as JSON: "
STRANGE = " is damaged: not what a training saved"

TABLE: list[tuple[str, Damage, str]] = [
    *((part, Path.unlink, MISSING) for part in PARTS),
    *((part, a_folder, MISSING) for part in PARTS),
    *((part, a_pipe, MISSING) for part in (STATE, WEIGHTS, OPTIMIZER)),
    *((part, a_loop, MISSING) for part in (CONFIG, RNG)),
    *((part, truncated, UNREADABLE) for part in (STATE, CONFIG)),
    *((part, empty, UNREADABLE) for part in (STATE, CONFIG)),
    *((part, in_utf_16, UNREADABLE) for part in (STATE, CONFIG)),
    *((part, text("[]"), ": expected a JSON object, found []") for part in (STATE, CONFIG)),
    *((part, text("[" * 100_000), UNREADABLE) for part in (STATE, CONFIG)),
    (STATE, text("\x1b[2J"), UNREADABLE),
    (STATE, field("global_step", "\x1b[2J"), r": global_step is '\x1b[2J', expected int"),
    (STATE, field("global_step", 2), ": global_step is 2"),
    (STATE, field("global_step", 3.0), ": global_step is 3.0, expected int"),
    (STATE, field("global_step", True), ": global_step is True, expected int"),
    (STATE, field("log_history", {"loss": 1}), ": log_history is {'loss': 1}, expected list"),
    (STATE, field("log_history", [1]), ": log_history: expected a JSON object, found 1"),
    (
        STATE,
        field("log_history", [{"step": 1, "loss": []}]),
        ": log_history: loss is [], expected int | float | None",
    ),
    (STATE, field("best_metric", "low"), ": best_metric is 'low', expected int | float | None"),
    (
        STATE,
        field("best_model_checkpoint", []),
        ": best_model_checkpoint is [], expected str | None",
    ),
    (STATE, field("stateful_callbacks", []), ": stateful_callbacks is [], expected dict"),
    (STATE, field("epoch", None), ": epoch is None, expected int | float"),
    (STATE, without("max_steps"), ": max_steps is missing, expected int"),
    (CONFIG, without("peft_type"), ": peft_type is missing, expected str"),
    (CONFIG, field("r", [8]), ": r is [8], expected int"),
    (WEIGHTS, truncated, " is damaged: "),
    (WEIGHTS, empty, " is damaged: "),
    (WEIGHTS, header_flipped, " is damaged: "),
    *((part, truncated, STRANGE) for part in (OPTIMIZER, SCHEDULER, RNG)),
    *((part, empty, STRANGE) for part in (OPTIMIZER, SCHEDULER, RNG)),
    *((part, flipped, STRANGE) for part in (OPTIMIZER, RNG)),
    *((part, hostile_pickle, STRANGE) for part in (OPTIMIZER, SCHEDULER, RNG)),
    *((part, hostile_zip, STRANGE) for part in (OPTIMIZER, SCHEDULER, RNG)),
    *((part, saved([1, 2]), STRANGE) for part in (OPTIMIZER, SCHEDULER, RNG)),
    *((part, saved({}), STRANGE) for part in (OPTIMIZER, SCHEDULER, RNG)),
    (OPTIMIZER, changed("param_groups", {}), STRANGE),
    (OPTIMIZER, changed("state", []), STRANGE),
    (SCHEDULER, changed("last_epoch", "three"), STRANGE),
    (RNG, changed("python", [1]), STRANGE),
    (RNG, changed("numpy", ("MT19937", 1)), STRANGE),
    (RNG, changed("cpu", torch.zeros(3)), STRANGE),
]
"""A part of a checkpoint, what happens to it, and what a refusal says about it."""


@pytest.mark.parametrize(("part", "damage", "said"), TABLE)
def test_a_damaged_checkpoint_that_is_named_is_refused(
    run: Path, refused: Refused, part: str, damage: Damage, said: str
) -> None:
    damage(last(run) / part)
    done = train(run.with_name("another"), *GIVEN, f"resume={last(run)}")
    whole = last(run).with_name("checkpoint-2")
    refused(done, f"resume={last(run)}: {last(run) / part}{said}", f"; use {whole}")
    assert last(run).is_dir()


SOME = (
    (STATE, text("[]"), ": expected a JSON object, found []"),
    (STATE, field("log_history", [1]), ": log_history: expected a JSON object, found 1"),
    (CONFIG, Path.unlink, MISSING),
    (WEIGHTS, truncated, " is damaged: "),
    (OPTIMIZER, Path.unlink, MISSING),
    (OPTIMIZER, flipped, STRANGE),
    (SCHEDULER, hostile_zip, STRANGE),
    (RNG, Path.unlink, MISSING),
    (RNG, changed("python", [1]), STRANGE),
)


@pytest.mark.parametrize(("part", "damage", "said"), SOME)
def test_auto_takes_the_last_whole_checkpoint_and_says_so(
    run: Path, trained: Finished, part: str, damage: Damage, said: str
) -> None:
    damage(last(run) / part)
    done = train(run, *GIVEN)
    assert done.code == 0, done.errors
    lines, whole = done.errors.splitlines(), last(run).with_name("checkpoint-2")
    (skipped,) = [line for line in lines if "this checkpoint is skipped" in line]
    assert skipped.startswith(f"{last(run) / part}{said}")
    assert skipped.endswith(": this checkpoint is skipped, and now called damaged-checkpoint-3")
    assert f"resuming from {whole}, after step 2" in lines
    assert done.result["resumed_from"] == str(whole)
    assert done.result["history"] == trained.result["history"]
    assert last(run).with_name("damaged-checkpoint-3").is_dir()
    assert last(run).is_dir()
    assert not list(run.rglob(CANARY))


def test_the_arguments_that_transformers_pickles_are_never_read(run: Path) -> None:
    hostile_pickle(last(run) / "training_args.bin")
    done = train(run, *GIVEN)
    assert done.code == 0, done.errors
    assert done.result["resumed_from"] == str(last(run))
    assert not list(run.rglob(CANARY))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "default/"])
def test_weights_that_would_load_in_place_of_the_adapter_are_refused(
    run: Path, refused: Refused, name: str
) -> None:
    planted = last(run) / name
    planted.mkdir() if name.endswith("/") else shutil.copy(last(run) / WEIGHTS, planted)
    done = train(run.with_name("another"), *GIVEN, f"resume={last(run)}")
    refused(done, f"{planted} does not belong beside an adapter")


@pytest.mark.parametrize("change", ["shape", "name"])
def test_weights_of_another_model_are_refused(run: Path, change: str) -> None:
    weights = load_file(last(run) / WEIGHTS)
    name = min(weights)
    tensor = weights.pop(name)
    weights[name if change == "shape" else "another"] = tensor[:-1].clone()
    save_file(weights, last(run) / WEIGHTS)
    done = train(run, *GIVEN)
    assert done.code == 1
    assert "Traceback" not in done.errors
    (line,) = [line for line in done.errors.splitlines() if line.startswith("error")]
    assert line.startswith(f"error: {last(run) / WEIGHTS} does not fit the model: ")
    assert ("size mismatch" if change == "shape" else f"it has no {name}") in line


def test_optimizer_states_of_another_model_are_refused(run: Path) -> None:
    path = last(run) / OPTIMIZER
    content = torch.load(path, weights_only=True)
    content["param_groups"] = content["param_groups"][:1]
    content["state"] = {}
    content["param_groups"][0]["params"] = [0]
    torch.save(content, path)
    done = train(run, *GIVEN)
    assert done.code == 1
    assert "Traceback" not in done.errors
    assert f"error: {path} does not fit the model: " in done.errors


def test_with_no_whole_checkpoint_auto_starts_anew_and_a_path_is_refused(
    run: Path, trained: Finished, refused: Refused
) -> None:
    for checkpoint in last(run).parent.glob("checkpoint-*"):
        (checkpoint / RNG).unlink()
    done = train(run.with_name("another"), *GIVEN, f"resume={run}")
    refused(done, f"{last(run) / RNG} is missing; no other checkpoint there is whole")
    done = train(run, *GIVEN)
    assert done.code == 0, done.errors
    assert done.errors.count("this checkpoint is skipped") == 3
    assert "no checkpoint to resume from: starting at the first step" in done.errors
    assert done.result["history"] == trained.result["history"]
    assert len(list(last(run).parent.glob("damaged-checkpoint-*"))) == 3


def test_damaged_best_weights_are_refused(run: Path, refused: Refused) -> None:
    state, best = last(run) / STATE, last(run).with_name("checkpoint-1")
    field("best_model_checkpoint", str(best))(state)
    truncated(best / WEIGHTS)
    done = train(run, *GIVEN)
    refused(done, f"{last(run)} says that checkpoint-1 beside it has the best weights, but {best}")
    assert last(run).is_dir()


@pytest.mark.parametrize("whole", [True, False])
def test_the_run_that_wrote_a_checkpoint_says_what_it_must_have(
    run: Path, refused: Refused, whole: bool
) -> None:
    if not whole:
        (last(run) / OPTIMIZER).unlink()
    done = train(run, *GIVEN, "adapter=full")
    refused(done, "has adapter=lora, not full: use another hydra.run.dir")
    assert last(run).is_dir()
    assert not list(last(run).parent.glob("damaged-*"))


def test_a_model_alone_is_not_resumed_from(tmp_path: Path, refused: Refused) -> None:
    given = (*GIVEN, "+trainer.args.save_only_model=true")
    done = train(tmp_path / "run", *given)
    assert done.code == 0, done.errors
    said = "trainer.args.save_only_model=true: if this run is interrupted, it cannot be resumed"
    assert said in done.errors.splitlines()
    checkpoint = last(tmp_path / "run")
    assert not (checkpoint / OPTIMIZER).exists()
    (tmp_path / "run" / "result.json").write_text(json.dumps({**done.result, "status": "running"}))
    line = f"{checkpoint} has only a model, since trainer.args.save_only_model=true: no run"
    refused(train(tmp_path / "run", *given), line)
    refused(train(tmp_path / "another", *GIVEN, f"resume={tmp_path / 'run'}"), line)
