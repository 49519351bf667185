"""Two evaluations are compared on the same items, or refused by name."""

import dataclasses
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamina.data.synthetic import generate
from lamina.errors import ModelError
from lamina.measure.comparison import (
    Evaluated,
    compare_all,
    compare_columns,
    incomparable,
    load_evaluation,
)
from lamina.measure.tasks.figures import loss_metrics
from lamina.measure.tasks.files import (
    EvaluatedModel,
    EvaluationResult,
    ItemResult,
    Metric,
    TaskResult,
    append_items,
    write_evaluation,
)
from tests.conftest import REFERENCE

MODEL = EvaluatedModel(
    name="m", revision=None, kept_layers=None, layers=6, parameters=9, bytes=36, dtype="float32"
)
PROTOCOL = {"file": "arc.jsonl", "few_shot": 0, "template": "none"}


def write(folder: Path, correct: list[bool], *, role: str = "final", **changes: Any) -> Evaluated:
    """Write and read an evaluation of one task of choices and one of text, of three documents."""
    folder.mkdir(parents=True)
    accuracy = Metric(value=sum(correct) / len(correct), stderr=0.1, n=len(correct), chance=0.25)
    choices = {
        "kind": "choices",
        "items": len(correct),
        "items_hash": "a" * 64,
        "protocol": PROTOCOL,
        "metrics": {"acc": accuracy},
        "seconds": 1.0,
        **changes,
    }
    text = {
        **choices,
        "kind": "text",
        "items": 3,
        "metrics": {
            "loss": Metric(value=2.0, stderr=0.1, n=3),
            "perplexity": Metric(value=7.4, stderr=0.7, n=3),
        },
    }
    tasks = {"arc": TaskResult(**choices), "wiki": TaskResult(**text)}
    result = EvaluationResult(
        role=role, model=MODEL, tasks=tasks, speed=None, versions={}, device="CPU", seconds=1.0
    )
    write_evaluation(folder, result)
    items = [ItemResult(task="arc", id=row, correct=each) for row, each in enumerate(correct)]
    rise = 0.0 if role == "original" else 1.0
    items += [ItemResult(task="wiki", id=row, nll=20.0 + rise, tokens=10) for row in (2, 0, 1)]
    append_items(folder, items[::-1])
    return load_evaluation(folder)


def test_a_comparison_by_hand(tmp_path: Path) -> None:
    before = write(tmp_path / "original", [True] * 8 + [False] * 2, role="original")
    after = write(tmp_path / "final", [True] * 2 + [False] * 8)
    (found,) = compare_all([(before, after)])
    accuracy, loss = found["arc"]["acc"], found["wiki"]["loss"]
    assert (accuracy.first, accuracy.second, accuracy.n) == (0.8, 0.2, 10)
    assert accuracy.difference == pytest.approx(-0.6)
    assert accuracy.p == pytest.approx(2 / 2**6)
    assert accuracy.retention == pytest.approx(25)
    assert accuracy.low < -0.6 < accuracy.high < 0
    assert accuracy.retention_low < 25 < accuracy.retention_high < 100
    assert not accuracy.is_within_noise
    assert (loss.first, loss.second, loss.low, loss.high, loss.p) == (2.0, 2.1, 0.1, 0.1, 0.25)
    assert loss.retention == pytest.approx(100 * np.exp(-0.1))
    assert loss.is_within_noise
    assert set(found["wiki"]) == {"loss"}
    json.dumps(dataclasses.asdict(accuracy))


def test_a_model_against_itself_is_within_noise(tmp_path: Path) -> None:
    same = write(tmp_path / "final", [True] * 9 + [False])
    for metrics in compare_all([(same, same)])[0].values():
        for found in metrics.values():
            assert (found.difference, found.low, found.high) == (0, 0, 0)
            assert (found.retention_low, found.retention, found.retention_high) == (100, 100, 100)
            assert found.is_within_noise


def test_five_lost_of_five_are_within_noise_by_the_exact_test() -> None:
    first, second = np.ones((50, 1)), np.ones((50, 1))
    second[:5] = 0
    (found,) = compare_columns(first, second)
    assert found.high < 0
    assert found.p == 0.0625
    assert found.is_within_noise


def test_a_document_without_scored_tokens_does_not_count() -> None:
    first, tokens = np.array([[4.0], [6.0], [0.0]]), np.array([2.0, 3.0, 0.0])
    (found,) = compare_columns(first, first + 0.2 * tokens[:, None], tokens)
    (expected,) = compare_columns(first[:2], first[:2] + 0.2 * tokens[:2, None], tokens[:2])
    assert found == expected
    assert (found.n, found.low) == (2, pytest.approx(0.2))
    assert loss_metrics([4.0, 6.0, 0.0], [2, 3, 0]) == loss_metrics([4.0, 6.0], [2, 3])


def test_many_pairs_get_what_one_pair_gets(tmp_path: Path) -> None:
    before = write(tmp_path / "original", [True] * 8 + [False] * 2, role="original")
    others = [write(tmp_path / str(n), [True] * n + [False] * (10 - n)) for n in range(1, 4)]
    together = compare_all([(before, other) for other in others])
    assert together == [compare_all([(before, other)])[0] for other in others]


def test_a_figure_that_its_items_do_not_give_is_not_compared(tmp_path: Path) -> None:
    """A group of lm-eval's may have items of which only some count for a metric."""
    others = {"metrics": {"acc": Metric(value=0.5, stderr=0.1, n=4)}}
    partly = write(tmp_path / "final", [True] * 8 + [False] * 2, **others)
    assert compare_all([(partly, partly)])[0].keys() == {"wiki"}


OTHER = {
    "template": (
        {"protocol": {**PROTOCOL, "template": "chat"}},
        "arc: not comparable: template is none and chat",
    ),
    "a key that one lacks": (
        {"protocol": {**PROTOCOL, "thinking": True}},
        "arc: not comparable: thinking is None and True",
    ),
    "blank texts": (
        {"protocol": {**PROTOCOL, "stop": "\n\n", "template": " "}},
        'arc: not comparable: stop is None and "\\n\\n", template is none and " "',
    ),
    "kind": ({"kind": "generation"}, "arc: not comparable: kind is choices and generation"),
    "items": (
        {"items_hash": "b" * 64},
        "arc: not comparable: the items or their tokens differ (aaaaaaaaaaaa and bbbbbbbbbbbb)",
    ),
}


@pytest.mark.parametrize("case", OTHER)
def test_what_was_measured_in_another_way_is_not_compared(case: str, tmp_path: Path) -> None:
    changes, reason = OTHER[case]
    before = write(tmp_path / "original", [True, False], role="original")
    after = write(tmp_path / "final", [True, False], **changes)
    found = incomparable(before, after)
    assert f"arc: not comparable: {found['arc']}" == reason
    assert compare_all([(before, after)])[0].keys().isdisjoint(found)


def test_items_that_are_missing_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "final", [True, False])
    path = tmp_path / "final" / "items.jsonl"
    path.write_text(path.read_text()[:-10])
    with pytest.raises(ModelError) as caught:
        load_evaluation(tmp_path / "final")
    assert str(caught.value) == f"{path}: arc has 1 items, expected 2"


def test_a_dropped_first_layer_is_not_within_noise_but_the_model_itself_is() -> None:
    """On the reference model: losses of 60 documents."""
    from datasets import Dataset

    from lamina.data.splits import Split
    from lamina.data.tokenization import Tokenization
    from lamina.depth.loading import load_model, load_tokenizer, torch_dtype
    from lamina.measure.evaluate import row_losses
    from lamina.weights.source import resolve

    source = resolve(str(REFERENCE))
    split = Split(Dataset.from_list(list(islice(generate("eval", 5), 60))), "synthetic eval")
    rows = list(Tokenization(load_tokenizer(source), "auto", 128, split)(split).rows)
    dtype = torch_dtype("float32", automatic="float32")
    whole, cut = (
        row_losses(load_model(source, kept, dtype=dtype), rows, max_tokens=512)
        for kept in (tuple(range(12)), tuple(range(1, 12)))
    )
    first = np.array([whole.nll, whole.nll]).T
    second = np.array([whole.nll, cut.nll]).T
    same, dropped = compare_columns(first, second, np.array(whole.tokens, dtype=float))
    assert same.is_within_noise
    assert not dropped.is_within_noise
    assert dropped.low > 0


def test_one_document_tells_no_difference() -> None:
    (found,) = compare_columns(np.array([[1.0]]), np.array([[5.0]]), np.array([4.0]))
    assert (found.difference, found.low, found.high, found.p) == (1.0, 1.0, 1.0, 1.0)
    assert found.is_within_noise


def test_losses_over_a_few_documents_differ_by_chance_no_more_than_once_in_20() -> None:
    generator = np.random.default_rng(1)
    for documents, allowed in ((2, 0.0), (5, 0.0), (6, 0.05), (10, 0.06)):
        first = generator.normal(300, 20, (documents, 400))
        second = first + generator.normal(0, 2, first.shape)
        found = compare_columns(first, second, np.full(documents, 100.0))
        assert np.mean([not each.is_within_noise for each in found]) <= allowed
