"""Fetches the data of the evidence from the hub.

    python benchmarks/evidence/fetch.py [FOLDER]

Shows: nothing; writes FOLDER/gsm8k/ and FOLDER/tasks/, which run.py reads as data=FOLDER. The data
sets are those of docs/results.md, at most 1,000 shuffled items of each task: not the same items as
there, so that figures differ by chance. `items_hash` in evaluation.json tells.
Peer: none.
"""

import argparse
import json
import random
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]
ROWS, SEED = 1000, 20251125


def _lettered(row: Row) -> Row:
    """Return an item of ARC or OpenBookQA, whose answer is a letter."""
    given, question = row["choices"], row.get("question", row.get("question_stem"))
    label = given["label"].index(row["answerKey"])
    return {"context": question, "choices": given["text"], "label": label}


def _piqa(row: Row) -> Row:
    return {"context": row["goal"], "choices": [row["sol1"], row["sol2"]], "label": row["label"]}


def _hellaswag(row: Row) -> Row:
    context = _plain(f"{row['activity_label']}: {row['ctx']}")
    choices = [*map(_plain, row["endings"])]
    return {"context": context, "choices": choices, "label": int(row["label"])}


def _plain(text: str) -> str:
    """Return a text of WikiHow without its marks, as lm-eval does."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _lambada(row: Row) -> Row:
    context, _, target = row["text"].rpartition(" ")
    return {"context": context, "target": target}


def _dolly(row: Row) -> Row:
    asked = "\n\n".join(filter(None, (row["instruction"], row["context"])))
    return {"instruction": asked, "response": row["response"]}


def _maths(row: Row) -> Row:
    return {"question": row["question"], "answer": row["answer"]}


SETS: Mapping[str, tuple[str, str | None, str, Callable[[Row], Row]]] = {
    "gsm8k/train": ("openai/gsm8k", "main", "train", _maths),
    "gsm8k/test": ("openai/gsm8k", "main", "test", _maths),
    "tasks/dolly": ("databricks/databricks-dolly-15k", None, "train", _dolly),
    "tasks/arc_easy": ("allenai/ai2_arc", "ARC-Easy", "test", _lettered),
    "tasks/piqa": ("baber/piqa", None, "validation", _piqa),
    "tasks/hellaswag": ("Rowan/hellaswag", None, "validation", _hellaswag),
    "tasks/openbookqa": ("allenai/openbookqa", "main", "test", _lettered),
    "tasks/lambada": ("EleutherAI/lambada_openai", "default", "test", _lambada),
}
"""By file: hub id, configuration, split and form."""

WIKITEXT = "Salesforce/wikitext", "wikitext-2-raw-v1"


def articles(lines: Iterable[str]) -> list[str]:
    """Join WikiText's lines into articles, which begin with a title of one equals sign."""
    found: list[str] = []
    for line in lines:
        if (line.startswith(" = ") and not line.startswith(" = = ")) or not found:
            found.append("")
        found[-1] += line
    return [text for text in found if text.strip()]


def main() -> None:
    """Write all files."""
    from datasets import load_dataset

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("data"), metavar="FOLDER")
    folder: Path = parser.parse_args().folder
    for name, (hub_id, config, split, form) in SETS.items():
        rows = [form(row) for row in load_dataset(hub_id, config, split=split)]
        if name.startswith("tasks/"):
            random.Random(SEED).shuffle(rows)
            rows = rows[: 2500 if name == "tasks/dolly" else ROWS]
        _write(folder / f"{name}.jsonl", rows)
    for split, name in (("validation", "valid"), ("test", "test")):
        lines = (row["text"] for row in load_dataset(*WIKITEXT, split=split))
        rows = [{"text": text} for text in articles(lines)]
        _write(folder / "tasks" / f"wikitext2_{name}.jsonl", rows)


def _write(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    print(f"{path} written")


if __name__ == "__main__":
    main()
