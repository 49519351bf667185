"""What is measured in a process of its own is what is measured here."""

import json
from pathlib import Path

import pytest

from lamina.depth.loading import load_model, load_tokenizer
from lamina.errors import TrainingError
from lamina.measure.evaluate import answers, row_losses
from lamina.measure.protocol import Meter
from lamina.measure.results import Record
from lamina.weights.source import resolve
from tests.conftest import REFERENCE, Finished

KEPT = (0, 1, 2, 3, 8, 9)


def meter(rows: list[dict[str, list[int]]], folder: Path) -> Meter:
    from lamina.measure.evaluate import Evaluation

    asked = Evaluation(baseline=True, reduced=True, reload=True, num_samples=2, max_new_tokens=6)
    prompts = [("first", rows[0]["input_ids"][:9]), ("second", rows[1]["input_ids"][:9])]
    record = Record(folder, [])
    return Meter(evaluation=asked, rows=rows, prompts=prompts, max_tokens=256, record=record)


def rows_of(run: Finished) -> list[dict[str, list[int]]]:
    lines = (run.folder / "eval.jsonl").read_text().splitlines()[:20]
    return [{key: json.loads(line)[key] for key in ("input_ids", "labels")} for line in lines]


def test_losses_and_answers_are_the_same(pruned: Finished, tmp_path: Path) -> None:
    import torch

    rows, source = rows_of(pruned), resolve(str(REFERENCE))
    measuring = meter(rows, tmp_path)
    model = load_model(source, KEPT, dtype=torch.float32)
    losses, said = measuring.elsewhere(source.name, None, KEPT, "float32", in_4bit=False).found
    assert losses == row_losses(model, rows, max_tokens=256)
    prompts = [ids for _, ids in measuring.prompts]
    assert said == answers(model, load_tokenizer(source), prompts, 6)


def test_a_final_is_measured_as_a_user_loads_it(pruned: Finished, tmp_path: Path) -> None:
    rows = rows_of(pruned)
    there = meter(rows, tmp_path).elsewhere(str(pruned.final), None, None, "float32", in_4bit=False)
    lines = (pruned.folder / "eval.jsonl").read_text().splitlines()[:20]
    recorded = [json.loads(line)["loss"] for line in lines]
    assert there.found[0].row_means() == pytest.approx(recorded, abs=1e-6)


def test_a_process_that_fails_says_why(pruned: Finished, tmp_path: Path) -> None:
    there = meter(rows_of(pruned), tmp_path).elsewhere(
        str(tmp_path / "no"), None, None, "float32", in_4bit=False
    )
    with pytest.raises(TrainingError, match=r"no could not be measured: .*; see train\.log"):
        _ = there.found
