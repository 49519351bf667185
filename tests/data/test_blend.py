"""data=blend: which rows are drawn, in which shares, and what is refused."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lamina.data.sources import Blend
from lamina.errors import DataError
from tests.conftest import FOREIGN, SHORT, train


def rows(path: Path, name: str, count: int) -> str:
    lines = (json.dumps({"text": f"{name}{number}"}) + "\n" for number in range(count))
    path.write_text("".join(lines))
    return str(path)


def blend(sources: dict[str, Any], seed: int = 1, **more: Any) -> Blend:
    return Blend(format="jsonl", sources=sources, seed=seed, **{**FOREIGN, **more})


def texts(source: Blend) -> list[str]:
    splits = source.load()
    return [row["text"] for split in (splits.train, splits.eval) for row in split.usable()]


def test_rows_are_drawn_by_weight_once_and_always_the_same(tmp_path: Path) -> None:
    a, b = rows(tmp_path / "a.jsonl", "a", 30), rows(tmp_path / "b.jsonl", "b", 200)
    given = {"a": {"train": a, "weight": 0.3}, "b": {"train": b, "weight": 0.7}}
    found = texts(blend(given))
    assert Counter(text[0] for text in found) == {"a": 30, "b": 70}
    assert len({*found}) == 100
    assert texts(blend(given)) == found
    assert texts(blend(dict(reversed(given.items())))) == found
    assert {*texts(blend(given, seed=2))} != {*found}
    scaled = {"a": {"train": a, "weight": 3}, "b": {"train": b, "weight": 7}}
    assert texts(blend(scaled)) == found
    splits = blend(given, eval=b).load()
    assert splits.train.per_source() == {"a": 30, "b": 70}
    assert len(splits.eval.rows) == 200
    index = next(i for i, row in enumerate(splits.train.rows) if row["file"] == 1)
    text = [*splits.train.usable()][index]["text"]
    assert splits.train.where(index) == (b, int(text[1:]) + 1)


def test_sources_that_do_not_fit_are_named(tmp_path: Path) -> None:
    a, b = rows(tmp_path / "a.jsonl", "a", 30), tmp_path / "b.jsonl"
    sources = {"a": {"train": a, "weight": 1}, "b": {"train": str(b), "weight": 1}}
    b.write_text(json.dumps({"question": "a", "answer": "b"}) + "\n")
    with pytest.raises(DataError) as refused:
        blend(sources).load()
    assert str(refused.value) == (
        "data.sources.b has question and answer, data.sources.a text: give all the same columns"
    )
    rows(b, "b", 1)
    with pytest.raises(DataError) as refused:
        blend({**sources, "b": {"train": str(b), "weight": 100}}).load()
    assert str(refused.value) == (
        "data.sources.a.weight=1.0 draws no row: raise it, or add rows to the other sources"
    )
    b.write_text("\n")
    with pytest.raises(DataError, match=rf"^data\.sources\.b\.train={b}: no rows$"):
        blend(sources).load()


def test_a_file_in_two_sources_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    file, folder = rows(tmp_path / "rows" / "a.jsonl", "a", 30), str(tmp_path / "rows")
    given = {"a": {"train": folder, "weight": 1}, "b": {"train": file, "weight": 1}}
    with pytest.raises(DataError) as refused:
        blend(given).find()
    assert str(refused.value) == (
        f"data.sources.b.train={file}: data.sources.a.train={folder} also reads {file}, so its "
        "rows would be drawn twice: give each source other files"
    )


def test_a_run_records_how_many_rows_each_source_gave(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "copy AB"}, {"role": "assistant", "content": "AB"}]
    for name in "ab":
        (tmp_path / name).write_text((json.dumps({"messages": turns}) + "\n") * 40)
    sources = f"{{a: {{train: {tmp_path}/a, weight: .25}}, b: {{train: {tmp_path}/b, weight: .5}}}}"
    given = ["data=blend", f"data.sources={sources}", "max_steps=1", "eval_steps=1", "save_steps=1"]
    shutil.copy(tmp_path / "a", tmp_path / "held")
    more = ["selector=first", "evaluation=none", f"data.eval={tmp_path}/held"]
    done = train(tmp_path / "run", *SHORT, *given, *more)
    assert done.code == 0, done.errors
    assert done.result["data"]["sources"] == {"a": 20, "b": 40}
    assert done.result["data"]["train"]["rows"] == 60
    assert "training rows: " in done.errors


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{}", "data.sources is empty: set 'data.sources={NAME: {train: FILE, weight: NUMBER}, "),
        ("{a: b}", "data.sources.a=b: expected train and weight\n"),
        (
            "{a: {train: b, weight: 0}}",
            "data.sources.a.weight=0: use a number above 0 and at most 1e9\n",
        ),
        (
            "{a: {train: b, weight: -1.5}}",
            "data.sources.a.weight=-1.5: use a number above 0 and at most 1e9\n",
        ),
        (
            "{a: {train: b, weight: x}}",
            "data.sources.a.weight=x: use a number above 0 and at most 1e9\n",
        ),
        (
            "{a: {train: b, weight: 1e308}, b: {train: b, weight: 1}}",
            "data.sources.a.weight=1e+308: use a number above 0 and at most 1e9\n",
        ),
        ("{a: null}", "data.sources.a=null: expected train and weight\n"),
        ("{a: {train: '', weight: 1}}", "data.sources.a.train=: expected a file or folder\n"),
        ("{a: {train: null, weight: 1}}", "data.sources.a.train=null: expected a file or folder\n"),
        ("foo", "data.sources=foo: a group of keys; set data.sources.NAME=VALUE\n"),
        (
            "{1: {train: b, weight: 1}, c: {train: b, weight: 1}}",
            "data.sources.1: a name must be text, not a number, true or false\n",
        ),
        ("{a: {train: b}}", "data.sources.a.weight is missing: set data.sources.a.weight=NUMBER\n"),
        ("{a: {train: 1, weight: 1}}", "data.sources.a.train=1: expected a file or folder\n"),
        (
            "{a: {train: b, weight: 1, wieght: 2}}",
            "data.sources.a.wieght=2: no such key; did you mean weight?\n",
        ),
        (
            "{a: {train: nowhere, weight: 1}}",
            "data.sources.a.train=nowhere: no such file or folder\n",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, given: str, message: str) -> None:
    done = train(tmp_path / "run", *SHORT, "selector=first", "data=blend", f"data.sources={given}")
    assert done.code == 1
    assert done.refusal.startswith(f"error: {message}")
    assert done.refusal.count("\n") == 1
