"""The texts of the evidence, cut once from a folder of data: to scan, to heal, and held out."""

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

SETTINGS = "settings.json"
CHARACTERS = 1200
"""Most characters of a document: some 300 tokens."""
CALCULATIONS = re.compile(r"<<[^>]*>>")
"""GSM8K's marks for a calculator, which no model writes by itself."""


def prepare(data: Path, folder: Path, settings: Any) -> None:
    """Write the texts of a data folder; exits where a file is missing, or other ones are there."""
    made_with = json.dumps(
        {key: settings[key] for key in ("documents", "rows")} | {"tasks": [*settings.tasks]}
    )
    if folder.is_dir():
        if (folder / SETTINGS).read_text() != made_with:
            raise SystemExit(f"error: {folder} has texts of other settings: choose another output")
        return
    documents, half = settings.documents, settings.rows // 2
    maths = {each: [*_maths(data / "gsm8k" / f"{each}.jsonl")] for each in ("train", "test")}
    chats = [*_short(data / "tasks" / "dolly.jsonl")]
    held = min(2 * documents, len(chats) // 2)
    wiki = {
        each: [*_articles(data / "tasks" / f"wikitext2_{each}.jsonl")] for each in ("valid", "test")
    }
    # A healing trains on the first rows, a scan reads them, and nothing held out is among them.
    scan = {"gsm8k": maths["train"], "wikitext2": wiki["valid"], "dolly": chats[held:]}
    heldout = {"gsm8k": maths["test"], "wikitext2": wiki["test"], "dolly": chats[:held]}
    plain = {name: [*map(_plain, islice(rows, documents))] for name, rows in heldout.items()}
    made = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(made, ignore_errors=True)
    for name, rows in scan.items():
        _write(made / "scan" / f"{name}.jsonl", map(_plain, rows))
    _write(made / "scan" / "mixed.jsonl", map(_plain, _mixed([*scan.values()])))
    for name, texts in plain.items():
        _write(made / "heldout" / f"{name}.jsonl", texts)
    _write(made / "heldout.jsonl", _mixed([*plain.values()]))
    train = [maths["train"][:half], chats[held : held + half]]
    _write(made / "train.jsonl", map(_chat, _mixed(train)))
    # As many again as are held out as texts: all of them are in eval.jsonl, which has 200 rows.
    both = [maths["test"][: documents * 4 // 3], chats[: min(held, documents * 4 // 3)]]
    _write(made / "eval.jsonl", map(_chat, _mixed(both)))
    _write(made / "questions.jsonl", maths["test"][:documents])
    for name in settings.tasks:
        _write(made / "tasks" / f"{name}.jsonl", _rows(data / "tasks" / f"{name}.jsonl"))
    (made / SETTINGS).write_text(made_with)
    made.rename(folder)


def _rows(path: Path) -> Iterator[Row]:
    if not path.is_file():
        raise SystemExit(f"error: {path} is missing: python benchmarks/evidence/fetch.py writes it")
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _maths(path: Path) -> Iterator[Row]:
    for row in _rows(path):
        yield {"question": row["question"], "answer": CALCULATIONS.sub("", row["answer"])}


def _short(path: Path) -> Iterator[Row]:
    for row in _rows(path):
        if len(row["instruction"]) + len(row["response"]) <= CHARACTERS:
            yield {"question": row["instruction"], "answer": row["response"]}


def _articles(path: Path) -> Iterator[Row]:
    """Yield the beginning of each article, about as long as the other texts' documents.

    Pieces of one article would not be independent.
    """
    return ({"text": row["text"].strip()[: CHARACTERS // 2]} for row in _rows(path))


def _mixed(given: Sequence[Sequence[Row]]) -> Iterable[Row]:
    """Take a row of each in turn, until the shortest one ends."""
    return chain.from_iterable(zip(*given, strict=False))


def _plain(row: Row) -> Row:
    return row if "text" in row else {"text": f"{row['question']}\n\n{row['answer']}"}


def _chat(row: Row) -> Row:
    turns = (("user", row["question"]), ("assistant", row["answer"]))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def _write(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
