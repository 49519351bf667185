"""What counts as right, and as a loop."""

import pytest

from lamina.measure.tasks.generation import is_right, loops


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
