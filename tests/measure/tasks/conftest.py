"""Task files of the embedded generator's own items, and the reference model."""

import json
import random
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lamina.data.synthetic import FAMILIES, generate
from lamina.measure.tasks.settings import TaskSettings
from tests.conftest import REFERENCE

SETTINGS = TaskSettings(
    few_shot=0,
    limit=None,
    template="none",
    thinking=None,
    max_new_tokens=12,
    window=None,
    stride=None,
    bos="auto",
    batch_tokens=256,
)


def pairs(count: int) -> list[tuple[str, str]]:
    """Questions of the generator with their answers."""
    rows = islice(generate("eval", 11), count)
    return [(row["messages"][0]["content"], row["messages"][1]["content"]) for row in rows]


def choice_rows(count: int) -> list[dict[str, Any]]:
    """A question with its answer between those of three others of its kind."""
    rng, rows = random.Random(3), []
    families = len(FAMILIES)
    asked = pairs(4 * families * count)
    for number in range(count):
        own = asked[number % families :: families][4 * number : 4 * number + 4]
        choices = list(dict.fromkeys(answer for _, answer in own))
        right = choices[0]
        rng.shuffle(choices)
        if len(choices) > 1:
            rows.append({"context": own[0][0], "choices": choices, "label": choices.index(right)})
    return rows


def write_file(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write items."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tasks")
    asked = pairs(24)
    texts = [" ".join(f"{q} {a}" for q, a in asked[n : n + 5]) for n in range(0, 24, 5)]
    return {
        "choices": write_file(folder / "choices.jsonl", choice_rows(12)),
        "target": write_file(
            folder / "target.jsonl", [{"context": q, "target": a} for q, a in asked[:10]]
        ),
        "generation": write_file(
            folder / "generation.jsonl", [{"question": q, "answer": a} for q, a in asked[:10]]
        ),
        "text": write_file(folder / "text.jsonl", [{"text": text} for text in texts]),
    }


@pytest.fixture(scope="session")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(REFERENCE, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(REFERENCE)
