"""A killed run resumes with the losses and weights of an undisturbed one."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import REFERENCE, SHORT, Finished, start, train

STEPS = ("max_steps=12", "eval_steps=4", "save_steps=4", "evaluation=none")


def killed_after(folder: Path, checkpoint: str, *overrides: str) -> None:
    """Start a run and kill it once `checkpoint` is written."""
    command = ("-m", "train", f"hydra.run.dir={folder}", *overrides)
    with start(*command, cwd=folder.parent) as process:
        state = folder / "checkpoints" / "pruned" / checkpoint / "trainer_state.json"
        deadline = time.monotonic() + 300
        while not state.is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        assert process.poll() == -signal.SIGKILL, "the run ended before it could be killed"


@pytest.fixture(scope="module", params=["lora", "full", "partial"])
def twins(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Finished, Finished]:
    """An undisturbed run, and one that was killed at a checkpoint and resumed."""
    folder = tmp_path_factory.mktemp(request.param)
    more = ["adapter.head=untied"] if request.param == "partial" else []
    overrides = (*SHORT, *STEPS, f"adapter={request.param}", *more, "logger=both")
    whole = train(folder / "whole", *overrides)
    killed_after(folder / "killed", "checkpoint-4", *overrides)
    assert json.loads((folder / "killed" / "result.json").read_text())["status"] == "running"
    resumed = train(folder / "killed", *overrides)
    assert whole.code == resumed.code == 0, resumed.errors
    return whole, resumed


def test_a_killed_run_resumes_with_the_same_losses(twins: tuple[Finished, Finished]) -> None:
    whole, resumed = twins
    assert [entry["step"] for entry in whole.result["history"]] == list(range(1, 13))
    assert resumed.result["history"] == whole.result["history"]
    assert resumed.metrics["eval_loss"] == whole.metrics["eval_loss"]


LOGS = "logs/pruned"


def logged(path: Path, tag: str = "train/loss") -> list[tuple[int, float]]:
    """The values in TensorBoard's file or folder, by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_a_resumed_run_did_not_start_over(twins: tuple[Finished, Finished]) -> None:
    whole, resumed = twins
    assert resumed.metrics["train_tokens"] == whole.metrics["train_tokens"]
    first, second, *_ = sorted((resumed.folder / LOGS / resumed.result["name"]).iterdir())
    assert [step for step, _ in logged(second)] == list(range(5, 13))
    spent = "train/seconds/forward_backward"
    assert dict(logged(second, spent))[5] > dict(logged(first, spent))[4]


def test_tensorboard_has_each_step_once(twins: tuple[Finished, Finished]) -> None:
    whole, resumed = twins
    history = whole.result["history"]
    expected = [(entry["step"], pytest.approx(entry["loss"])) for entry in history]
    assert logged(resumed.folder / LOGS / resumed.result["name"]) == expected


def test_a_resumed_run_keeps_its_wandb_id(twins: tuple[Finished, Finished]) -> None:
    ids = [
        [path.name.rpartition("-")[2] for path in run.folder.glob("wandb/offline-run-*")]
        for run in twins
    ]
    assert [len(each) for each in ids] == [1, 2]
    assert ids[1][0] == ids[1][1] != ids[0][0]


def test_the_best_weights_are_identical(twins: tuple[Finished, Finished]) -> None:
    whole, resumed = (
        {path.name: path.read_bytes() for path in run.final.glob("*.safetensors")} for run in twins
    )
    assert whole
    assert whole == resumed


def test_an_incomplete_checkpoint_is_skipped(pruned: Finished, tmp_path: Path) -> None:
    from lamina.runtime.checkpoints import last_checkpoint

    folder = tmp_path / "pruned"
    state = (pruned.final.parent / "checkpoint-3" / "trainer_state.json").read_text()
    for name, content in (("checkpoint-3", state), ("checkpoint-6", state[:99])):
        (folder / name).mkdir(parents=True)
        (folder / name / "trainer_state.json").write_text(content)
    (folder / "checkpoint-9").mkdir()
    assert last_checkpoint(folder) == folder / "checkpoint-3"
    assert last_checkpoint(tmp_path) is None


@pytest.mark.parametrize(
    "change",
    ["model.keep_layers=6", "adapter=full", "learning_rate=1e-4", "lora.r=8", "packing=false"],
)
def test_a_checkpoint_of_another_experiment_is_refused(pruned: Finished, change: str) -> None:
    before = pruned.result
    done = train(pruned.folder, *SHORT, change)
    assert done.code == 1
    assert "use another hydra.run.dir" in done.errors
    assert pruned.result == before


def test_a_changed_setting_is_named_with_both_values(pruned: Finished) -> None:
    done = train(pruned.folder, *SHORT, "learning_rate=1e-4")
    assert "has trainer.args.learning_rate=0.002, not 0.0001: use another" in done.errors


def test_resuming_after_the_last_step_trains_no_further(tmp_path: Path) -> None:
    given = (*SHORT, "lr_scheduler_type=constant", "evaluation=none", "export.form=merged")
    whole = train(tmp_path / "run", *given)
    assert whole.code == 0, whole.errors
    before, weights = whole.result, (whole.final / "model.safetensors").read_bytes()
    shutil.rmtree(whole.final)
    (whole.folder / "result.json").write_text(json.dumps({**before, "status": "running"}))
    again = train(tmp_path / "run", *given)
    assert again.code == 0, again.errors
    step = before["history"][-1]["step"]
    assert (
        f"max_steps={step}, but {whole.final.parent / f'checkpoint-{step}'} has reached step "
        f"{step}: nothing is left to train; set a larger max_steps to continue"
    ) in again.errors
    assert again.result["history"] == before["history"]
    assert again.metrics["train_tokens"] == before["metrics"]["train_tokens"]
    assert again.metrics["eval_loss"] == before["metrics"]["eval_loss"]
    assert (again.final / "model.safetensors").read_bytes() == weights


def test_a_finished_run_resumes_with_a_larger_max_steps(tmp_path: Path) -> None:
    given = (*SHORT, "lr_scheduler_type=constant", "evaluation=none")
    short = train(tmp_path / "grown", *given)
    longer = train(tmp_path / "grown", *given, "max_steps=9")
    at_once = train(tmp_path / "at_once", *given, "max_steps=9")
    assert (short.code, longer.code, at_once.code) == (0, 0, 0), longer.errors
    assert longer.result["history"] == at_once.result["history"]


def test_changed_data_is_refused(pruned: Finished) -> None:
    before = pruned.result
    done = train(pruned.folder, *SHORT, "generator.seed=9")
    assert done.code == 1
    assert "has data_fingerprint=" in done.errors
    assert pruned.result == before


def test_changed_data_is_refused_again_after_a_refusal(pruned: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(pruned.folder, folder)
    (folder / "result.json").write_text(json.dumps({**pruned.result, "status": "interrupted"}))
    for _ in range(2):
        done = train(folder, *SHORT, "generator.seed=9", "max_steps=9")
        assert done.code == 1
        assert "has data_fingerprint=" in done.errors


def test_resume_never_leaves_an_earlier_run_alone(pruned: Finished) -> None:
    before = pruned.result
    done = train(pruned.folder, *SHORT, "resume=never")
    assert done.code == 1
    assert "resume=never" in done.errors
    assert pruned.result == before


def test_a_run_resumes_from_a_given_checkpoint(pruned: Finished, tmp_path: Path) -> None:
    path = pruned.folder / "checkpoints" / "pruned" / "checkpoint-3"
    before = pruned.result
    done = train(tmp_path / "run", *SHORT, "logger=none", f"resume={path}")
    assert done.code == 0, done.errors
    assert done.result["resumed_from"] == str(path)
    assert done.result["history"] == before["history"]
    assert done.metrics["eval_loss"] == before["metrics"]["eval_loss"]
    linked = done.folder / "checkpoints" / "pruned" / "checkpoint-3" / "trainer_state.json"
    assert linked.samefile(path / "trainer_state.json"), "it did not start over"
    assert pruned.result == before


@pytest.fixture(scope="module")
def another_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model with one weight changed."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("base") / "base"
    shutil.copytree(REFERENCE, folder)
    (path,) = folder.glob("*.safetensors")
    weights = load_file(path)
    weights["model.norm.weight"][0] += 1
    save_file(weights, path, {"format": "pt"})
    return folder


@pytest.mark.parametrize("change", ["model.keep_layers=6", "adapter=full", "model_name="])
def test_a_given_checkpoint_of_another_variant_is_refused(
    pruned: Finished, tmp_path: Path, another_base: Path, change: str
) -> None:
    change += str(another_base) if change == "model_name=" else ""
    done = train(tmp_path / "run", *SHORT, change, f"resume={pruned.folder}")
    assert done.code == 1
    (line,) = done.refusal.splitlines()
    assert line.startswith(f"error: resume={pruned.folder}, but {pruned.folder}/checkpoints/pruned")
    assert line.endswith(": use another checkpoint")
    assert done.result["data"] == {}


def test_another_base_is_refused_in_the_same_folder(pruned: Finished, another_base: Path) -> None:
    before = pruned.result
    done = train(pruned.folder, *SHORT, f"model_name={another_base}")
    assert done.code == 1
    assert f"has base={before['settings']['base']}, not " in done.errors
    assert pruned.result == before


def test_the_best_checkpoint_is_kept(tmp_path: Path) -> None:
    steps = ("max_steps=8", "eval_steps=2", "save_steps=2", "save_total_limit=2")
    diverging = ("learning_rate=0.5", "lr_scheduler_type=constant_with_warmup", "warmup_ratio=0.4")
    done = train(tmp_path / "run", *SHORT, *steps, *diverging, "logger=none")
    assert done.code == 0, done.errors
    losses = {e["step"]: e["eval_loss"] for e in done.result["history"] if e["eval_loss"]}
    best = min(losses, key=lambda step: losses[step])
    assert best < 6, losses
    names = {path.name for path in done.final.parent.glob("checkpoint-*")}
    assert names == {f"checkpoint-{best}", "checkpoint-8"}
    assert done.metrics["eval_loss"] == pytest.approx(losses[best], rel=1e-4)
