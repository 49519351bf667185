"""How large the model and the batches of gpu.py are, and the rows that it trains on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from generated import SHAPES, Shape


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a model and its batches are."""

    shape: Shape
    bf16: bool
    length: int
    """Tokens in a pack."""
    batch: Mapping[str, int]
    """Packs in a step, by adapter: as many as fit into 139 GiB without recomputation."""
    steps: int


SIZES = {
    "8b": Size(shape=SHAPES["8b"], bf16=True, length=4096, batch={"lora": 2, "full": 1}, steps=20),
    "tiny": Size(
        shape=Shape(
            hidden_size=32,
            intermediate_size=64,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            vocab_size=512,
        ),
        bf16=False,
        length=128,
        batch={"lora": 1, "full": 1},
        steps=5,
    ),
}


def write_rows(path: Path, size: Size) -> None:
    """Write texts of random letters, from an eighth of a pack to a whole one long.

    A letter is a token at most, so none is cut.
    """
    random, written, wanted = Random(1), 0, size.steps * max(size.batch.values()) * size.length
    lines = []
    while written < wanted:
        length = random.randint(size.length // 8, size.length - 8)
        text = "".join(random.choices("abcdefghijklmnopqrstuvwxyz0123456789 ", k=length))
        lines.append(json.dumps({"text": text}) + "\n")
        written += length
    path.write_text("".join(lines))
