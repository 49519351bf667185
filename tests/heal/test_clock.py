"""The split of a training's time and the speed after warm-up, with a fake clock."""

import itertools
import json
from typing import Any

import pytest
import torch
from transformers import TrainerState

from lamina.heal.callbacks.clock import PHASES, SPENT, StepClock, warm_up_steps
from lamina.measure.speed import Flops

FLOPS = Flops(per_token=100, per_target=10, per_pair={None: 1, 2: 1000})


@pytest.mark.parametrize(
    ("steps", "warm_up"),
    [(0, 0), (1, 0), (2, 1), (3, 2), (20, 2), (30, 3), (95, 10), (5000, 10)],
)
def test_a_tenth_of_the_steps_is_warm_up_but_the_last_one_counts(steps: int, warm_up: int) -> None:
    assert warm_up_steps(steps) == warm_up


class Training:
    """A training whose phases take the given seconds."""

    def __init__(self, clock: StepClock, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock, self.now, self.state = clock, 0.0, TrainerState(max_steps=30)
        monkeypatch.setattr("lamina.heal.callbacks.clock.time.monotonic", lambda: self.now)

    def on(self, event: str) -> None:
        getattr(self.clock, f"on_{event}")(None, self.state, None)

    def step(self, data: float, forward_backward: float, optimizer: float, tokens: int) -> None:
        self.clock.switch("data")
        self.now += data
        self.clock.switch("forward_backward")
        self.now += forward_backward
        self.state.num_input_tokens_seen += tokens
        ids = torch.zeros(1, tokens, dtype=torch.long)
        self.clock.count({"input_ids": ids, "labels": ids})
        self.clock.switch("optimizer")
        self.on("pre_optimizer_step")
        self.now += optimizer
        self.state.global_step += 1
        self.on("step_end")

    def other(self, phase: str, seconds: float) -> None:
        with self.clock.during(phase):
            self.now += seconds


def test_speed_excludes_warm_up_evaluations_and_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(StepClock(FLOPS), monkeypatch)
    training.on("train_begin")
    for number in range(30):
        warm = number >= 3
        assert (training.clock.reading() is None) == (number < 4)
        training.step(1, 5 if warm else 500, 2, tokens=80)
        if number == 20:
            training.other("evaluation", 1000)
            training.other("save", 100)
        training.now += 2  # logging
    training.on("train_end")
    training.now += 1e6
    reading = training.clock.reading()
    assert reading.seconds == 27 * 8 + 26 * 2 + 2
    assert reading.tokens == 27 * 80
    assert reading.flops == 27 * (80 * 100 + 79 * 10 + 80 * 81 // 2 + (2 * 80 - 1) * 1000)
    assert reading.speed(1e4) == {
        "tokens_per_second": reading.tokens / reading.seconds,
        "flops_per_second": reading.flops / reading.seconds,
        "mfu": reading.flops / reading.seconds / 1e4,
    }
    assert reading.speed(None)["mfu"] is None
    seconds = training.clock.seconds
    assert seconds == {
        "data": 30, "forward_backward": 3 * 500 + 27 * 5, "optimizer": 60, "evaluation": 1000,
        "save": 100, "other": 60,
    }  # fmt: skip
    assert tuple(seconds) == PHASES


@pytest.mark.parametrize("is_known", [True, False])
def test_a_resumed_training_has_the_speed_of_its_own_steps_and_the_cost_of_all(
    monkeypatch: pytest.MonkeyPatch, *, is_known: bool
) -> None:
    first = Training(StepClock(FLOPS), monkeypatch)
    first.on("train_begin")
    for _ in range(26):
        first.step(2, 10, 1, tokens=80)
    first.other("evaluation", 7)
    training = Training(StepClock(FLOPS), monkeypatch)
    training.state.global_step, training.state.num_input_tokens_seen = 26, 10**9
    if is_known:
        training.state.stateful_callbacks[SPENT] = json.loads(json.dumps(first.clock.state()))
    training.on("train_begin")
    for seconds in (100, 100, 5, 5):
        training.step(1, seconds, 2, tokens=80)
    reading = training.clock.reading()
    assert (reading.seconds, reading.tokens) == (16, 160)
    assert training.clock.train_seconds() == (26 * 13 + 210 + 4 * 3 if is_known else None)
    assert training.clock.trained_tokens() == (30 * 79 if is_known else None)
    assert training.clock.seconds["evaluation"] == (7 if is_known else 0)


def test_a_second_training_starts_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(StepClock(FLOPS), monkeypatch)
    for _ in range(2):
        training.state = TrainerState(max_steps=30)
        training.on("train_begin")
        for _ in range(5):
            training.step(1, 5, 2, tokens=80)
        assert training.clock.reading().tokens == 160
        training.on("train_end")
        assert sum(training.clock.seconds.values()) == 40


def test_without_token_counts_there_is_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(StepClock(FLOPS), monkeypatch)
    training.on("train_begin")
    for _ in range(5):
        training.step(1, 5, 2, tokens=0)
    assert training.clock.reading() is None


def pairs(clock: StepClock, inputs: dict[str, Any]) -> tuple[int, int, int]:
    """Targets, pairs, and pairs within a window of two tokens, of one batch."""
    clock.state = TrainerState(max_steps=1)
    clock.on_train_begin(None, clock.state, None)
    clock.count(inputs)
    return tuple(clock._counted.tolist())


def seen(lengths: list[int], window: int) -> int:
    """The ones of the mask: within a document, backward, no further than the window."""
    return sum(
        i - j < window
        for length in lengths
        for i, j in itertools.product(range(length), repeat=2)
        if j <= i
    )


def test_documents_of_a_pack_count_separately() -> None:
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 0, 1, 2]])
    labels = torch.tensor([[-100, 5, 5, 5, -100, 5, -100, 5, 5]])
    found = pairs(StepClock(FLOPS), {"labels": labels, "position_ids": positions})
    assert found == (6, seen([4, 2, 3], 9), seen([4, 2, 3], 2)) == (6, 10 + 3 + 6, 7 + 3 + 5)


def test_padding_is_not_counted() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    labels = torch.tensor([[-100, -100, 5, 5], [5, 5, -100, -100]])
    inputs = {"labels": labels, "attention_mask": mask}
    assert pairs(StepClock(FLOPS), inputs) == (3, seen([4, 2], 9), seen([4, 2], 2))
    both = {**inputs, "position_ids": torch.tensor([[0, 1, 2, 3], [0, 1, 0, 0]])}
    assert pairs(StepClock(FLOPS), both) == (3, seen([4, 2], 9), seen([4, 2], 2))
