"""trainer=distill by the real command: what it leaves, the same after a kill, by two processes."""

import json
from pathlib import Path

import pytest

from tests.conftest import SHORT, Finished, train
from tests.integration.test_distributed import GIVEN
from tests.integration.test_resume import killed_after
from tests.reload import loaded

TAUGHT = (
    *SHORT,
    "trainer=distill",
    "eval_steps=2",
    "save_steps=2",
    "logging_steps=3",
    "evaluation.num_samples=0",
)
"""The checkpoint at two thirds, step 4, lies between two logs."""


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    done = train(tmp_path_factory.mktemp("taught") / "run", *TAUGHT, "logger=both")
    assert done.code == 0, done.errors
    return done


def logged(done: Finished, *names: str) -> list[list[tuple[int, float]]]:
    """What TensorBoard has, by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(done.folder / "logs/pruned" / done.result["name"]))
    events.Reload()
    return [[(event.step, event.value) for event in events.Scalars(name)] for name in names]


def test_a_distilled_model_reloads_with_its_loss(taught: Finished) -> None:
    metrics = taught.metrics
    assert metrics["eval_loss"] < metrics["reduced_eval_loss"]
    found = loaded(taught, taught.final)["loss"]
    assert found == pytest.approx(metrics["eval_sample_loss"], abs=1e-5)
    assert taught.result["settings"]["trainer"] == "distill"
    assert taught.result["settings"]["trainer.loss"] == "forward_kl"


def test_the_card_says_what_the_training_loss_was(taught: Finished) -> None:
    lines = (taught.final / "README.md").read_text().splitlines()
    table = lines.index("| healing | |")
    assert lines[table + 2 : table + 6] == [
        "| trainer | distill |",
        "| trainer.loss | forward_kl |",
        "| trainer.temperature | 1 |",
        "| learning_rate | 0.002 |",
    ]


def test_a_run_that_ends_before_a_log_has_its_divergence(tmp_path: Path) -> None:
    given = (*TAUGHT, "max_steps=2", "evaluation=none")
    runs = [train(tmp_path / every, *given, f"logging_steps={every}") for every in ("2", "10")]
    assert [done.code for done in runs] == [0, 0], runs[0].errors + runs[1].errors
    assert runs[1].metrics["kl"] == runs[0].metrics["kl"] > 0


def test_divergence_and_cost_of_the_teacher_are_recorded_and_logged(taught: Finished) -> None:
    metrics = taught.metrics
    kl, loss, tokens, teacher = logged(
        taught, "train/kl", "train/loss", "train/trained_tokens", "train/seconds/teacher"
    )
    assert [step for step, _ in kl] == [3, 6]
    assert kl[-1][1] == pytest.approx(metrics["kl"])
    # At temperature 1 they are the same, but the loss is a mean of steps and the other of tokens.
    assert [value for _, value in kl] == pytest.approx([value for _, value in loss], rel=0.3)
    assert tokens[-1][1] == metrics["trained_tokens"] > 0
    assert teacher[-1][1] == pytest.approx(metrics["seconds"]["teacher"], rel=0.2)
    assert 0 < metrics["seconds"]["teacher"] < metrics["train_seconds"]
    (run,) = taught.folder.glob("wandb/offline-run-*/*.wandb")
    content = run.read_bytes()
    assert all(name in content for name in (b"train/kl", b"train/seconds/teacher"))


def test_a_killed_distillation_resumes_with_equal_losses(taught: Finished, tmp_path: Path) -> None:
    killed_after(tmp_path / "run", "checkpoint-4", *TAUGHT, "logger=tb")
    assert json.loads((tmp_path / "run/result.json").read_text())["status"] == "running"
    again = train(tmp_path / "run", *TAUGHT, "logger=tb")
    assert again.code == 0, again.errors
    assert str(again.result["resumed_from"]).endswith("checkpoint-4")
    assert again.result["history"] == taught.result["history"]
    names = ("eval_loss", "kl", "trained_tokens")
    assert [again.metrics[name] for name in names] == [taught.metrics[name] for name in names]
    figures = ("train/kl", "train/entropy", "train/mean_token_accuracy")
    assert [each[1:] for each in logged(again, *figures)] == [
        each[1:] for each in logged(taught, *figures)
    ]
    weights = [(done.final / "adapter_model.safetensors").read_bytes() for done in (again, taught)]
    assert weights[0] == weights[1]


def test_two_processes_distil_as_one(tmp_path: Path) -> None:
    """Rows of different lengths, the last step with one row for two processes."""
    given = (*GIVEN, "trainer=distill", "max_steps=4", "evaluation=none")
    alone = train(tmp_path / "alone", *given, "gradient_accumulation_steps=2")
    together = train(tmp_path / "together", *given, "distributed=2")
    assert (alone.code, together.code) == (0, 0), alone.errors + together.errors
    for mine, other in zip(together.result["history"], alone.result["history"], strict=True):
        assert mine == pytest.approx(other, abs=1e-5)
    for name in ("eval_loss", "kl", "trained_tokens"):
        assert together.metrics[name] == pytest.approx(alone.metrics[name], abs=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ("trainer=distill", "adapter.target_modules=[q_proj,lm_head]"),
            "trainer=distill computes the loss without the output head's adapter: remove lm_head "
            "from adapter.target_modules",
        ),
        (
            ("trainer=distill", "adapter.trainable_token_indices=[3,321]"),
            "adapter.trainable_token_indices=[3, 321]: the model has 321 tokens: use ids from 0 to "
            "320",
        ),
        (
            ("trainer.args.loss_type=nll", "adapter.trainable_token_indices={wte:[3]}"),
            "adapter: Target modules {'wte'} not found in the base model. Please check the target "
            "modules and try again.",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_before_the_data_is_read(
    given: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    done = train(tmp_path / "run", *SHORT, "export.form=merged", *given)
    assert (done.code, done.refusal) == (1, f"error: {message}\n")
    assert done.result["data"] == {}
