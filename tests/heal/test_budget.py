"""The first step that reaches a budget of trained tokens is known before the training."""

from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset

from lamina.errors import ConfigError
from lamina.heal.budget import Budget, tokens_of_steps, trained_tokens

ROWS = Dataset.from_dict(
    {
        "input_ids": [[1, 2, 3, 4], [5, 6], [7, 8, 9, 1, 2], [3, 4, 5]],
        "labels": [[1, 2, 3, 4], [-100, 6], [-100, -100, 9, 1, 2], [3, -100, -100]],
    }
)


def arguments(**given: Any) -> Any:
    """What Budget reads of TRL's arguments."""
    return SimpleNamespace(
        **{
            "max_steps": -1,
            "packing": False,
            "eval_packing": None,
            "max_length": 8,
            "packing_strategy": "bfd",
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "train_sampling_strategy": "sequential",
            "seed": 7,
            "data_seed": 7,
            **given,
        }
    )


def steps(tokens: Any, rows: Dataset = ROWS, processes: int = 1, **given: Any) -> int:
    set_here = arguments(**given)
    Budget(tokens=tokens).set_steps(set_here, rows, processes)
    return int(set_here.max_steps)


def test_the_first_token_of_a_document_is_not_trained() -> None:
    assert trained_tokens(ROWS).tolist() == [3, 1, 3, 0]
    packs = Dataset.from_dict(
        {
            "labels": [[1, 2, 3, 4, -100, 6], [9, 9, 9], [1, 2]],
            "seq_lengths": [[4, 2], [1, 1, 1], [2]],
        }
    )
    assert trained_tokens(packs).tolist() == [4, 0, 1]


def test_the_last_step_of_an_epoch_may_be_smaller() -> None:
    counts = trained_tokens(ROWS)
    assert tokens_of_steps(counts, range(4), 3).tolist() == [7, 0]
    assert tokens_of_steps(counts, [3, 2, 0, 1], 2).tolist() == [3, 4]
    assert tokens_of_steps(counts, range(4), 9).tolist() == [7]


@pytest.mark.parametrize(
    ("tokens", "size", "expected"),
    # An epoch has 7 trained tokens in steps of 3, 1, 3 and 0, or of 4 and 3.
    [
        (700, 1, 400 - 1),  # the hundredth epoch's third step reaches it
        (701, 1, 401),
        (703, 1, 401),
        (704, 1, 402),
        (705, 1, 403),
        ("1k", 1, 4 * 142 + 3),
        (700, 2, 200),
        (704, 2, 201),
        (705, 2, 202),
    ],
)
def test_the_last_step_is_the_first_to_reach_the_budget(
    tokens: Any, size: int, expected: int
) -> None:
    assert steps(tokens, gradient_accumulation_steps=size) == expected
    assert steps(tokens, per_device_train_batch_size=size) == expected
    assert steps(tokens, processes=size) == expected


def test_without_a_budget_the_length_stays() -> None:
    assert steps(None) == -1
    assert steps(None, max_steps=5) == 5


def test_a_budget_that_steps_cannot_meet_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        steps("100", gradient_accumulation_steps=4)
    assert str(caught.value) == (
        "budget.tokens=100, but one step trains up to 7 tokens, more than 2% of it: lower "
        "per_device_train_batch_size, gradient_accumulation_steps or max_seq_length, or raise "
        "budget.tokens"
    )
    assert steps(150) == 4 * 21 + 1  # 147 in 21 epochs; a step of 3 is 2 %
    with pytest.raises(ConfigError) as caught:
        steps("100", ROWS.select([3]))
    assert str(caught.value) == "budget.tokens=100: the data has no trained token"
