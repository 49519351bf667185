"""The model that ships with the project keeps its card's promises."""

import json
from itertools import groupby, islice

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from lamina.data.byte_tokenizer import WORDS, build_tokenizer
from lamina.data.splits import Split
from lamina.data.synthetic import FAMILIES, generate
from lamina.data.tokenization import Tokenization
from lamina.depth.loading import load_model
from lamina.measure.evaluate import answers, row_losses
from lamina.weights.source import resolve
from tests.conftest import REFERENCE

QUESTIONS = REFERENCE.with_name("families")
ROWS = list(islice(generate("eval", 777), 200))


def test_it_is_small_and_has_twelve_layers() -> None:
    assert sum(path.stat().st_size for path in REFERENCE.iterdir()) < 8_000_000
    config = json.loads((REFERENCE / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"]) == ("qwen3", 12)
    assert config["dtype"] == "bfloat16"


def test_it_answers_held_out_questions_in_every_family() -> None:
    tokenizer = AutoTokenizer.from_pretrained(REFERENCE)
    model = AutoModelForCausalLM.from_pretrained(REFERENCE, dtype=torch.float32)
    split = Split(Dataset.from_list(ROWS), "held-out rows")
    tokenize = Tokenization(tokenizer, "auto", 128, split)
    given = answers(model, tokenizer, [tokenize.prompt(row)[1] for row in ROWS], 24)
    right = sorted(
        (row["family"], row["messages"][-1]["content"] == text)
        for row, text in zip(ROWS, given, strict=True)
    )
    shares = {
        family: sum(hit for _, hit in rows) / (len(ROWS) / len(FAMILIES))
        for family, rows in groupby(right, key=lambda pair: pair[0])
    }
    assert shares.keys() == FAMILIES.keys()
    assert min(shares.values()) >= 0.95


def test_the_comparison_asks_held_out_questions_of_every_family() -> None:
    assert sorted(path.stem for path in QUESTIONS.iterdir()) == sorted(FAMILIES)
    trained = {row["messages"][0]["content"] for row in islice(generate("train", 1), 20_000)}
    for family in FAMILIES:
        rows = (row for row in generate("eval", 1) if row["family"] == family)
        made: dict[str, str] = {}
        while len(made) < 100:  # those that come again are left out
            question, answer = (message["content"] for message in next(rows)["messages"])
            made[question] = answer
        lines = (QUESTIONS / f"{family}.jsonl").read_text().splitlines()
        items = {item["question"]: item["answer"] for item in map(json.loads, lines)}
        assert (len(lines), list(items.items())) == (100, list(made.items()))
        assert not items.keys() & trained


@pytest.mark.parametrize("layer", range(12))
def test_every_layer_matters(layer: int) -> None:
    split = Split(Dataset.from_list(ROWS), "held-out rows")
    tokenize = Tokenization(AutoTokenizer.from_pretrained(REFERENCE), "auto", 128, split)
    rows = list(tokenize(split).rows)
    source = resolve(str(REFERENCE))
    kept = tuple(index for index in range(12) if index != layer)
    whole, without = (
        row_losses(load_model(source, k, dtype=torch.float32), rows, max_tokens=4096).mean()
        for k in (range(12), kept)
    )
    assert without > 2 * whole


def test_its_tokenizer_is_the_one_that_is_built() -> None:
    shipped, built = AutoTokenizer.from_pretrained(REFERENCE), build_tokenizer()
    assert shipped.get_vocab() == built.get_vocab()
    assert shipped.chat_template == built.chat_template
    text = "compute 7-3-1-2, Größe 数"
    assert shipped(text)["input_ids"] == built(text)["input_ids"]
    assert shipped.decode(shipped(text)["input_ids"]) == text


@pytest.mark.parametrize("word", WORDS)
def test_the_generators_words_are_one_token_each(word: str) -> None:
    assert build_tokenizer().tokenize(word.replace("Ġ", " ")) == [word]
