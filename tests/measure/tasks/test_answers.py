"""What counts as right, and as a loop; batches of answers."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lamina.measure.tasks.generation import Answers, Encoded, is_right, loops
from lamina.measure.tasks.items import Question, Task
from lamina.measure.tasks.prompts import Prompts
from tests.architectures import ARCHITECTURES, build
from tests.measure.tasks.conftest import SETTINGS


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        (" 72\n", "72", True),
        ("72.", "72", False),
        ("<think>\n71?\n</think>\n\n72", "72", True),
        ("so she has 1,072 clips.", "48+24 = <<48+24=72>>\n#### 1072", True),
        ("#### $72", "#### 72", True),
        ("72, and not 73", "#### 72", False),
        ("none", "#### 72", False),
        ("-5", "#### -5", True),
    ],
)
def test_an_answer_is_right(answer: str, reference: str, right: bool) -> None:
    assert is_right(answer, reference) == right


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        ([], False),
        ([1] * 10, False),
        ([1] * 11, True),
        ([*range(20)] * 3, False),
        ([*range(20)] * 4, True),
        ([*range(200)], False),
    ],
)
def test_an_answer_loops(ids: list[int], found: bool) -> None:
    assert loops(ids) == found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_answers_do_not_depend_on_their_batch(name: str) -> None:
    """Padding on the left must not be seen; recurrent models get none."""
    tokenizer: Any = SimpleNamespace(pad_token_id=0, eos_token_id=2)
    settings = replace(SETTINGS, template="chat", max_new_tokens=8)
    answers = Answers(build(name), cast(Task, None), Prompts(tokenizer, settings))
    encoded = [
        Encoded(Question(n, "", ""), [5 + n, *range(20 + n, 20 + 3 * n), 9]) for n in range(5)
    ]
    encoded += [Encoded(Question(5, "", ""), [40, 9])]
    alone = [answers._generated([each.ids])[0] for each in encoded]
    batches = answers.batches(encoded)
    together = {
        number: ids
        for batch in batches
        for number, ids in zip(
            batch, answers._generated([encoded[number].ids for number in batch]), strict=True
        )
    }
    assert [together[number] for number in range(6)] == alone
    assert (len(batches) == 1) == (name not in {"mamba2", "qwen3_next", "falcon_h1"})
