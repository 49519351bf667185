"""Exact ids and labels of every form of rows, with the shipped tokenizer.

tests/data/golden.json was made by the tokenizers library alone: each piece of a row encoded by
itself, the trained pieces written down by hand.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lamina.data.forms import FORMS, TRAINED
from lamina.data.sources import Files
from lamina.data.splits import Split
from lamina.data.tokenization import IGNORED, Tokenization
from tests.conftest import FOREIGN, REFERENCE, ROOT

GOLDEN: dict[str, dict[str, Any]] = json.loads((ROOT / "tests/data/golden.json").read_text())
SAMPLE = ROOT / "tests/data/gsm8k/sample.jsonl"
LONGEST = 1065


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(REFERENCE)


@pytest.mark.parametrize("form", GOLDEN)
def test_the_ids_and_labels_of_a_form(form: str, tokenizer: PreTrainedTokenizerBase) -> None:
    golden = GOLDEN[form]
    split = Split(Dataset.from_list([golden["row"]]), "rows")
    done = Tokenization(tokenizer, golden["loss_on"], 512, split)(split)
    assert done.rows[0] == {key: golden[key] for key in ("input_ids", "labels")}


def test_every_form_has_its_golden_row() -> None:
    read = [Split(Dataset.from_list([g["row"]]), "rows").conversion.form for g in GOLDEN.values()]
    assert set(read) == set(FORMS)
    assert {FORMS[form] for form in read} == set(TRAINED)


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "parquet"])
def test_real_rows_are_equal_from_every_kind_of_file(
    kind: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in SAMPLE.read_text().splitlines()]
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        path = SAMPLE
    elif kind == "json":
        path.write_text(json.dumps(rows))
    else:
        getattr(Dataset.from_list(rows), f"to_{kind}")(path)
    given = {**FOREIGN, "eval": str(path)}
    split = Files(format=kind, train=str(path), **given).load().train
    done = Tokenization(tokenizer, "auto", LONGEST, split)(split)
    encoder = Tokenizer.from_file(str(REFERENCE / "tokenizer.json"))
    for row, made in zip(rows, done.rows, strict=True):
        question = encoder.encode(f"{row['question']}\n\n", add_special_tokens=False).ids
        answer = encoder.encode(f"{row['answer']}<|im_end|>", add_special_tokens=False).ids
        assert made["input_ids"] == question + answer
        assert made["labels"] == [IGNORED] * len(question) + answer
    assert asdict(done.count) == {
        "rows": 200,
        "rows_skipped": 0,
        "rows_dropped": 0,
        "tokens_in": 102_874,
        "tokens": 102_874,
        "tokens_dropped": 0,
        "tokens_trained": 56_759,
    }
