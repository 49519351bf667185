"""The figures of the reference model's card: losses and exact match by family, and layer by layer.

    python benchmarks/reference.py [FOLDER ...] [--rows 1000] [--layers] [--json FILE]

Shows: loss and exact match on held-out rows of the generator, from a seed that no training used.
Exact match: the greedy answer is right to the last character. --layers adds the loss without each
layer, one at a time. FOLDER is a model, such as the final/ of `python -m train experiment=reference
seed=43`; the default is the model that ships with the package.
Peer: none, unless several folders are given.
Aim: none; the card quotes the figures.
"""

import argparse
import json
from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from lamina.data.splits import Split
from lamina.data.synthetic import FAMILIES, generate
from lamina.data.tokenization import Tokenization
from lamina.depth.loading import load_model
from lamina.measure.evaluate import answers, row_losses
from lamina.runtime.paths import asset
from lamina.weights.source import resolve

HELD_OUT_SEED = 20_000
"""Seed of the questions; the trainings use small ones."""


def measure(folder: str, num_rows: int) -> dict[str, Any]:
    """Return a model's loss and exact match, overall and by family."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = list(islice(generate("eval", HELD_OUT_SEED), num_rows))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenize = Tokenization(tokenizer, "auto", 512, _split(rows))
    losses = row_losses(model, list(tokenize(_split(rows)).rows), max_tokens=8192)
    prompts = [tokenize.prompt(row)[1] for row in rows]
    given = answers(model, tokenizer, prompts, 32)
    by_family: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        by_family[row["family"]].append(index)
    right = [row["messages"][-1]["content"] == text for row, text in zip(rows, given, strict=True)]
    families = {
        name: {
            "loss": sum(losses.nll[i] for i in indices) / sum(losses.tokens[i] for i in indices),
            "exact_match": sum(right[i] for i in indices) / len(indices),
        }
        for name, indices in by_family.items()
    }
    overall = {"loss": losses.mean(), "exact_match": sum(right) / len(right)}
    return {"rows": num_rows, "all": overall, **families}


def without_each_layer(folder: str, num_rows: int) -> list[float]:
    """Return the leave-one-out losses: each the loss of the model without one layer."""
    source = resolve(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    split = _split(list(islice(generate("eval", HELD_OUT_SEED), num_rows)))
    rows = list(Tokenization(tokenizer, "auto", 512, split)(split).rows)
    depth = source.config["num_hidden_layers"]
    losses = []
    for layer in range(depth):
        kept = tuple(index for index in range(depth) if index != layer)
        model = load_model(source, kept, dtype=torch.float32)
        losses.append(row_losses(model, rows, max_tokens=8192).mean())
    return losses


def main() -> None:
    """Measure every given model and print one table."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("folders", nargs="*", default=[asset("reference")])
    parser.add_argument("--rows", type=int, default=1000, help="held-out questions")
    parser.add_argument("--layers", action="store_true", help="the loss without each layer too")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    figures = {folder: measure(folder, given.rows) for folder in given.folders}
    table = Table("model", "figure", "all", *FAMILIES)
    for folder, found in figures.items():
        for figure in ("loss", "exact_match"):
            cells = (f"{found[name][figure]:.4f}" for name in ("all", *FAMILIES))
            table.add_row(folder, figure, *cells)
    Console(width=140).print(table)
    if given.layers:
        for folder in given.folders:
            losses = without_each_layer(folder, given.rows)
            figures[folder]["leave_one_out"] = losses
            whole = figures[folder]["all"]["loss"]
            rows = Table("without layer", "loss", "times the whole model's", title=folder)
            for layer, loss in enumerate(losses):
                rows.add_row(str(layer), f"{loss:.4f}", f"{loss / whole:.2f}")
            Console().print(rows)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


def _split(rows: list[dict[str, Any]]) -> Split:
    return Split(Dataset.from_list(rows), "held-out rows")


if __name__ == "__main__":
    main()
