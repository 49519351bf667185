"""Data sources, and how a missing one is reported."""

import json
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from lamina.data.byte_tokenizer import build_tokenizer
from lamina.data.sources import Disk, Files, Hub, Synthetic
from lamina.data.splits import Split
from lamina.data.tokenization import Tokenization
from lamina.errors import DataError
from tests.conftest import FOREIGN, GENERATED


def jsonl(path: Path, *lines: str) -> str:
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


def source(
    train: object,
    evaluation: object = None,
    fraction: float = 0.5,
    kind: str = "jsonl",
    **more: Any,
) -> Files:
    held = None if evaluation is None else str(evaluation)
    given = {**FOREIGN, "eval": held, "eval_fraction": fraction, **more}
    return Files(format=kind, train=str(train), **given)


def texts(split: Split) -> list[str]:
    return [row["text"] for row in split.usable()]


def test_jsonl_reads_both_files(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "a.jsonl", '{"text": "a"}', '{"text": "b"}')
    held = jsonl(tmp_path / "b.jsonl", '{"text": "c"}')
    splits = source(train, held).load()
    assert texts(splits.train) == ["a", "b"]
    assert texts(splits.eval) == ["c"]


def test_a_fraction_is_held_out_and_no_row_is_in_both(tmp_path: Path) -> None:
    rows = [json.dumps({"text": str(number)}) for number in range(20)]
    splits = source(jsonl(tmp_path / "a.jsonl", *rows), fraction=0.25).load()
    train, held = set(texts(splits.train)), set(texts(splits.eval))
    assert len(held) == 5
    assert train | held == {str(number) for number in range(20)}
    assert not train & held


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, 0.01])
def test_a_fraction_that_leaves_nothing_is_refused(tmp_path: Path, fraction: float) -> None:
    path = jsonl(tmp_path / "a.jsonl", '{"text": "a"}', '{"text": "b"}')
    with pytest.raises(DataError, match=rf"data\.eval_fraction={fraction}"):
        source(path, fraction=fraction).load()


def test_an_unusable_row_is_named_before_a_fraction_that_leaves_nothing(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", '{"txt": "a"}')
    with pytest.raises(DataError, match=r"a\.jsonl, row 1: found columns txt; expected "):
        source(path).load()
    jsonl(tmp_path / "a.jsonl", '{"text": "a"}')
    with pytest.raises(DataError, match=r"data\.eval_fraction=0\.5 of 1 row in .*: set data"):
        source(path).load()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"text": "a"}', '{"text": '], "row 2: not JSON"),
        (['{"text": "a"}', '["a"]'], "row 2: found list; expected a JSON object"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, lines: list[str], message: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", *lines)
    with pytest.raises(DataError, match=rf"^{path}, {message}"):
        list(source(path, path).load().train.usable())


def test_a_row_of_another_type_is_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", '{"text": "a"}', '{"text": {"b": 1}}')
    held = jsonl(tmp_path / "b.jsonl", '{"text": "c"}')
    train = source(path, held).load().train
    with pytest.raises(
        DataError, match=r"a\.jsonl, row 2: column 'text' holds dict; expected text"
    ):
        Tokenization(build_tokenizer(), "auto", 64, train)(train)


def test_a_missing_file_and_an_empty_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.train=nowhere\.jsonl: no such file or folder"):
        source("nowhere.jsonl").load()
    with pytest.raises(DataError, match="the file is empty"):
        source(jsonl(tmp_path / "a.jsonl")).load()


def test_a_saved_data_set_is_loaded(tmp_path: Path) -> None:
    rows = Dataset.from_list([{"text": "a"}])
    DatasetDict(train=rows, eval=rows).save_to_disk(tmp_path / "saved")
    disk = Disk(path=str(tmp_path / "saved"), train="train", **{**FOREIGN, "eval": "eval"})
    assert texts(disk.load().eval) == ["a"]


def test_rows_saved_again_are_others(tmp_path: Path) -> None:
    """datasets identifies what a function made by the function."""
    answers = iter("ab")
    disk = Disk(path=str(tmp_path / "saved"), train="train", **{**FOREIGN, "eval": None})
    found = []
    for _ in range(2):
        rows = Dataset.from_list([{"text": "a"}] * 4)
        answer = next(answers)
        made = rows.map(lambda _: {"text": answer}, new_fingerprint="same")  # noqa: B023
        shutil.rmtree(tmp_path / "saved", ignore_errors=True)
        made.save_to_disk(tmp_path / "saved")
        found.append(disk.load().train.rows)
    assert [rows[0]["text"] for rows in found] == ["a", "b"]
    assert found[0]._fingerprint != found[1]._fingerprint


def test_rows_that_are_trained_are_not_evaluated(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    held = jsonl(tmp_path / "rows" / "held.jsonl", "a")
    jsonl(tmp_path / "rows" / "train.jsonl", "b")
    folder = str(tmp_path / "rows")
    with pytest.raises(DataError) as refused:
        source(folder, eval=held).find()
    assert str(refused.value) == (
        f"data.eval={held}: data.train={folder} also trains on {held}: evaluate on other rows, or "
        "set data.eval=null to hold out data.eval_fraction of the training rows"
    )
    rows = Dataset.from_list([{"text": "a"}])
    DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "saved")
    given = {**FOREIGN, "path": str(tmp_path / "saved")}
    disk = Disk(**{**given, "train": "train", "eval": "train"})
    with pytest.raises(DataError, match=r"data\.eval=train: data\.train=train also trains on it: "):
        disk.load()


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    rows = Dataset.from_list([{"text": "a"}])
    DatasetDict(fit=rows, dev=rows).save_to_disk(tmp_path / "saved")
    place = f"{tmp_path / 'saved'} has the splits fit, dev; choose one of them"
    given = {**FOREIGN, "path": str(tmp_path / "saved")}
    with pytest.raises(DataError) as refused:
        Disk(**{**given, "train": "train", "eval": "dev"}).load()
    assert str(refused.value) == f"data.train=train: {place}"
    with pytest.raises(DataError) as refused:
        Disk(**{**given, "train": "fit", "eval": "test"}).load()
    assert str(refused.value) == (
        f"data.eval=test: {place}, or data.eval=null to hold out data.eval_fraction of the "
        "training rows"
    )


@pytest.mark.parametrize(
    ("names", "train", "chosen"),
    [
        (("train", "test", "validation", "eval"), "train", "eval"),
        (("train", "test", "validation"), "train", "validation"),
        (("validation", "test"), "validation", "test"),
        (("train", "dev"), "train", None),
    ],
)
def test_the_evaluation_split_is_found_and_named(
    names: tuple[str, ...],
    train: str,
    chosen: str | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = {name: Dataset.from_list([{"text": f"{name} {n}"} for n in range(2)]) for name in names}
    DatasetDict(rows).save_to_disk(tmp_path / "saved")
    given = {**FOREIGN, "path": str(tmp_path / "saved"), "train": train, "eval": "auto"}
    with caplog.at_level("INFO", logger="lamina"):
        splits = Disk(**given).load()
    assert texts(splits.eval)[0].split()[0] == (chosen or train)
    assert caplog.messages == [
        f"data.eval=auto: {chosen}"
        if chosen
        else "data.eval=auto: none of eval, validation, test; 0.5 of data.train=train is held out"
    ]


def test_a_saved_data_set_without_splits_is_divided_only_without_data_eval(
    tmp_path: Path,
) -> None:
    Dataset.from_list([{"text": "a"}, {"text": "b"}]).save_to_disk(tmp_path / "saved")
    options = {"path": str(tmp_path / "saved"), "train": "train"}
    assert len(Disk(**options, **FOREIGN).load().eval.rows) == 1
    with pytest.raises(DataError, match=r"data\.eval=test: .* has no splits: set data\.eval=null"):
        Disk(**options, **{**FOREIGN, "eval": "test"}).load()


def test_a_folder_without_a_data_set_is_refused(tmp_path: Path) -> None:
    options = {**FOREIGN, "train": "train"}
    with pytest.raises(DataError, match="not written by save_to_disk"):
        Disk(path=str(tmp_path), **options).load()
    with pytest.raises(DataError, match="no such folder"):
        Disk(path=str(tmp_path / "nowhere"), **options).load()


def test_the_generator_gives_disjoint_splits_in_equal_shares() -> None:
    splits = Synthetic(train_rows=1000, eval_rows=200, seed=3, **GENERATED).load()
    questions = [
        {row["messages"][0]["content"] for row in s.rows} for s in (splits.train, splits.eval)
    ]
    assert not questions[0] & questions[1]
    families = splits.eval.rows["family"]
    assert {families.count(family) for family in families} == {40}
    assert len(set(families)) == 5


def test_the_generator_repeats_itself_and_its_seed_matters() -> None:
    from lamina.data.synthetic import generate

    first, again, other = (list(islice(generate("train", seed), 50)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("train", "held", "missing", "key"),
    [
        ("train_sft", "train", "train", "eval"),
        ("fit[:10%]+rest", "test", "fit", "train"),
        ("fit+rest[:5]", "test", "rest", "train"),
    ],
)
def test_the_split_that_a_data_set_on_the_hub_lacks_is_named(
    train: str, held: str, missing: str, key: str
) -> None:
    reason = f"Unknown split \"{missing}\". Should be one of ['train_sft', 'test']."
    given = {**FOREIGN, "name": "who/what", "config": None, "train": train, "eval": held}
    problem = Hub(**given)._not_there(reason)
    assert str(problem).startswith(
        f"data.{key}={given[key]}: who/what has the splits train_sft, test; choose one of them"
    )
