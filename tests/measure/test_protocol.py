"""The figures of the original are cached by all that they depend on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lamina.measure.protocol import ModelRef, figures, original
from lamina.measure.results import Record
from lamina.measure.resumable import Place
from lamina.measure.tasks.files import read_evaluation
from tests.conftest import REFERENCE
from tests.measure.test_isolated import isolated


def test_other_settings_ends_template_or_tokenizer_are_another_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path / "cache"))
    model, task = tmp_path / "model", tmp_path / "asked.jsonl"
    shutil.copytree(REFERENCE, model)
    task.write_text(json.dumps({"question": "1 + 1", "answer": "2"}))
    ref = ModelRef(
        name=str(model), revision=None, kept_layers=range(12), dtype="float32", in_4bit=False
    )
    row = {"input_ids": [5, 6, 7], "labels": [5, 6, 7]}
    protocol = replace(isolated([row, row]), isolated=False, original=ref)
    protocol = replace(protocol, wanted=replace(protocol.wanted, tasks=[str(task)]))
    record = Record(tmp_path / "run", [])
    record.content |= {"kept_layers": [0], "num_layers": 12, "eval_fingerprint": "", "final": ""}
    changes = {
        "README.md": ("", ""),
        "config.json": ('"rope_theta": 10000.0', '"rope_theta": 37.0'),
        "generation_config.json": ('"eos_token_id": [', '"eos_token_id": [14, '),
        "chat_template.jinja": ("{", " {"),
        "tokenizer_config.json": ("<|pad|>", "<|im_end|>"),
    }
    keys = []
    for name, change in changes.items():
        file = model / name
        file.write_text(file.read_text().replace(*change, 1))
        original(record, protocol)
        keys.append(read_evaluation(tmp_path / "run" / "evaluation" / "original").key)
    assert len({*keys}) == len(changes)
    assert len([*tmp_path.glob("cache/evaluations/*")]) == len(changes)


def test_an_original_that_is_back_is_compared_with(tmp_path: Path) -> None:
    task = tmp_path / "read.jsonl"
    task.write_text(json.dumps({"text": "1 + 1 = 2"}))
    ref = ModelRef(
        name=str(REFERENCE), revision=None, kept_layers=range(9), dtype="float32", in_4bit=False
    )
    row = {"input_ids": [5, 6, 7], "labels": [5, 6, 7]}
    protocol = replace(isolated([row, row]), prompts=(), isolated=False)
    protocol = replace(protocol, wanted=replace(protocol.wanted, tasks=[str(task)]))
    place = Place(folder=str(tmp_path), role="model", name="m", revision=None, kept_layers=None)
    figures(ref, protocol, place)
    assert read_evaluation(tmp_path).tasks["read"].agreement is None
    figures(ref, replace(protocol, original=replace(ref, kept_layers=range(12))), place)
    assert read_evaluation(tmp_path).tasks["read"].agreement is not None
