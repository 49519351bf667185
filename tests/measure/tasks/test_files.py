import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from lamina.errors import ModelError
from lamina.measure.tasks.files import (
    EVALUATION_FILE,
    ITEMS_FILE,
    Agreement,
    EvaluatedModel,
    EvaluationResult,
    Health,
    ItemResult,
    Metric,
    Speed,
    TaskResult,
    append_items,
    read_evaluation,
    read_items,
    write_evaluation,
)

METRIC = Metric(value=0.5, stderr=0.1, n=4, chance=0.25)
TASK = TaskResult(
    kind="choices",
    items=4,
    items_hash="0" * 64,
    protocol={"few_shot": 0, "template": "none", "limit": None},
    metrics={"acc": METRIC},
    health=Health(ended=1.0, looped=0.0, capped=0.0),
    agreement=Agreement(kl=METRIC, top1=METRIC),
    seconds=1.5,
)
RESULT = EvaluationResult(
    role="model",
    model=EvaluatedModel(
        name="m", revision=None, kept_layers=[0, 2], layers=2, parameters=9, bytes=18, dtype="f"
    ),
    tasks={"piqa": TASK},
    speed=[
        Speed(
            batch=1,
            prompt_tokens=2,
            new_tokens=3,
            prefill_tokens_per_second=4.0,
            decode_tokens_per_second=5.0,
            first_token_seconds=6.0,
            kv_cache_bytes=7,
            peak_memory_bytes=None,
            repeats=3,
            spread=0.1,
        )
    ],
    versions={"torch": "2"},
    device="cpu",
    seconds=2.0,
)
ITEM = ItemResult(task="piqa", id=0, correct=True, log_likelihoods=[-1.5, -2.0])


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_evaluation(tmp_path, RESULT)
    assert read_evaluation(tmp_path) == RESULT


def test_a_loss_that_is_not_finite_stays_one(tmp_path: Path) -> None:
    broken = replace(TASK, metrics={"loss": replace(METRIC, value=math.inf, stderr=None)})
    write_evaluation(tmp_path, replace(RESULT, tasks={"text": broken}))
    assert "Infinity" not in (tmp_path / EVALUATION_FILE).read_text()
    (found,) = read_evaluation(tmp_path).tasks.values()
    assert math.isnan(found.metrics["loss"].value)
    assert found.metrics["loss"].stderr is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format is 2, expected 1"),
        ({"role": 3}, "role is 3, expected str"),
        ({"tasks": []}, "tasks is [], expected dict"),
        ({"model": {}}, "model: name is missing"),
        (
            {"tasks": {"piqa": asdict(TASK) | {"metrics": {"acc": {"value": "high"}}}}},
            "tasks: piqa: metrics: acc: stderr is missing",
        ),
        (
            {"tasks": {"piqa": asdict(TASK) | {"metrics": {"acc": asdict(METRIC) | {"n": 1.5}}}}},
            "tasks: piqa: metrics: acc: n is 1.5, expected int",
        ),
    ],
)
def test_a_broken_evaluation_is_refused_by_its_field(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = tmp_path / EVALUATION_FILE
    path.write_text(json.dumps(asdict(RESULT) | change))
    with pytest.raises(ModelError) as raised:
        read_evaluation(tmp_path)
    assert str(raised.value) == f"{path}: {said}"


def test_items_are_appended_and_a_half_line_is_dropped(tmp_path: Path) -> None:
    assert read_items(tmp_path) == []
    append_items(tmp_path, [ITEM, replace(ITEM, id=1, log_likelihoods=None)])
    with (tmp_path / ITEMS_FILE).open("a") as file:
        file.write('{"task": "piqa", "id"')
    before = read_items(tmp_path)
    assert [item.id for item in before] == [0, 1]
    append_items(tmp_path, [replace(ITEM, id=2)])
    assert read_items(tmp_path) == [*before, replace(ITEM, id=2)]


def test_a_broken_item_is_named(tmp_path: Path) -> None:
    path = tmp_path / ITEMS_FILE
    path.write_text('{"task": "piqa", "id": 0}\n{"task": "piqa", "id": "1"}\n')
    with pytest.raises(ModelError) as raised:
        read_items(tmp_path)
    assert str(raised.value) == f'{path}, row 2: id is "1", expected int'


def test_a_number_beyond_floats_is_refused(tmp_path: Path) -> None:
    row = {"task": "piqa", "id": 0, "log_likelihoods": [10**400]}
    (tmp_path / ITEMS_FILE).write_text(json.dumps(row) + "\n")
    with pytest.raises(ModelError, match=r"row 1: log_likelihoods is 1000+, expected float"):
        read_items(tmp_path)
