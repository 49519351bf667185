"""Files of rows: what each kind reads, and how a broken one is reported."""

import bz2
import gzip
import json
import lzma
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict

from lamina.data.sources import Disk, Files
from lamina.errors import DataError
from tests.conftest import FOREIGN

ROWS = [{"prompt": "a, b", "completion": "72"}, {"prompt": 'say "ü"', "completion": "2024-01-01"}]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows in the format of the file's suffix."""
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".csv":
        Dataset.from_list(rows).to_csv(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def source(path: Path, evaluation: Path | None = None, **more: Any) -> Files:
    """Rows of a file, or of a folder named after the kind of its files."""
    kind = (path.suffix or path.name).removeprefix(".")
    given = {**FOREIGN, "eval": str(evaluation or path), **more}
    return Files(format=kind, train=str(path), **given)


def read(path: Path, **more: Any) -> list[dict[str, Any]]:
    return list(source(path, **more).load().train.usable())


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "parquet"])
def test_every_kind_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    assert read(write(tmp_path / f"rows.{kind}", ROWS)) == ROWS


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_numbers_keep_all_their_digits(tmp_path: Path, kind: str) -> None:
    """The library's own type for JSON fails beyond 64 bits and rounds to nine decimals."""
    numbers = {"id": 10**30, "least": -(2**63) - 1, "share": 0.12345678901234568}
    call = {"type": "function", "function": {"name": "f", "arguments": numbers}}
    chat = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    path = write(tmp_path / f"rows.{kind}", [{"messages": chat, **numbers}] * 2)
    kept = [row["messages"][1]["tool_calls"][0]["function"]["arguments"] for row in read(path)]
    assert kept == [numbers] * 2


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "parquet"])
def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / kind
    folder.mkdir()
    write(folder / f"b.{kind}", ROWS[1:])
    write(folder / f"a.{kind}", ROWS[:1])
    (folder / "notes.txt").write_text("not a row")
    split = source(folder).load().train
    assert list(split.usable()) == ROWS
    assert [split.place(0), split.place(1)] == [
        f"{folder}/a.{kind}, row 1",
        f"{folder}/b.{kind}, row 1",
    ]


COMPRESSED = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda content: _compress(content, "zstd"),
    "lz4": lambda content: _compress(content, "lz4"),
}


def _compress(content: bytes, codec: str) -> bytes:
    stream = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(stream, codec) as file:
        file.write(content)
    return stream.getvalue().to_pybytes()


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl"])
@pytest.mark.parametrize("suffix", COMPRESSED)
def test_a_compressed_file_is_read(tmp_path: Path, kind: str, suffix: str) -> None:
    folder = tmp_path / kind
    folder.mkdir()
    plain = write(tmp_path / f"rows.{kind}", ROWS).read_bytes()
    packed = folder / f"rows.{kind}.{suffix}"
    packed.write_bytes(COMPRESSED[suffix](plain))
    assert read(folder) == ROWS
    misnamed = packed.rename(folder / f"rows.{kind}")
    assert read(misnamed) == ROWS
    misnamed.write_bytes(COMPRESSED[suffix](plain * 2000)[:-9])
    named = re.escape(f"data.train={misnamed}")
    with pytest.raises(DataError, match=rf"^{named}: a damaged (gzip|bz2|xz|zstd|lz4) file \("):
        read(misnamed)


def test_an_archive_is_named(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", ROWS)
    for name, kind in (("rows.zip", "zip"), ("rows.tar", "tar"), ("rows.tar.gz", "tar")):
        form = "gztar" if name.endswith("gz") else kind
        shutil.make_archive(str(tmp_path / "rows"), form, tmp_path, "rows.jsonl")
        packed = (tmp_path / name).rename(tmp_path / "packed.jsonl")
        with pytest.raises(DataError) as refused:
            read(packed)
        assert str(refused.value) == (
            f"data.train={packed}: a {kind} archive: unpack it, and set the path of what was in it"
        )


def test_compressed_parquet_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", ROWS)
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(DataError) as refused:
        read(path)
    assert str(refused.value) == (
        f"data.train={path}: a gzip file: decompress it; Parquet compresses its columns"
    )


def test_a_folder_skips_dot_files_and_refuses_a_file_and_its_compressed_copy(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "jsonl"
    (folder / "folder.jsonl").mkdir(parents=True)
    path = write(folder / "a.jsonl", ROWS)
    (folder / "._a.jsonl").write_bytes(b"\0\x05\x16\x07")
    assert read(folder) == ROWS
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(DataError) as refused:
        read(folder)
    assert str(refused.value) == (
        f"data.train={folder}: a.jsonl and a.jsonl.gz would be read as the same rows twice: remove "
        "one of them, or rename it if its rows are others"
    )
    path.unlink()
    (folder / "a.jsonl.gz").unlink()
    with pytest.raises(DataError) as refused:
        read(folder)
    assert str(refused.value) == (
        f"data.train={folder}: no file in this folder ends in .jsonl (.gz, .bz2, .xz, .zst or .lz4 "
        "may follow): use another folder, or choose data=csv, json or parquet for files of that "
        "format"
    )


@pytest.mark.parametrize("orient", ["columns", "index", "records", "split", "table"])
@pytest.mark.parametrize("labels", [[0, 1], [7, 3], ["first", "second"]])
def test_what_pandas_writes_is_read(tmp_path: Path, orient: str, labels: list[Any]) -> None:
    path = tmp_path / "rows.json"
    pandas.DataFrame(ROWS, index=labels).to_json(path, orient=orient)
    assert read(path) == ROWS


@pytest.mark.parametrize("orient", ["columns", "index"])
def test_what_pandas_writes_is_read_under_the_names_of_data_columns(
    tmp_path: Path, orient: str
) -> None:
    named = [{"query": row["prompt"], "reply": row["completion"]} for row in ROWS]
    path = tmp_path / "rows.json"
    pandas.DataFrame(named, index=["first", "second"]).to_json(path, orient=orient)
    assert read(path, columns={"prompt": "query", "completion": "reply"}) == ROWS


@pytest.mark.parametrize(
    "content",
    [
        '{"data": [{"text": "a"}]}',
        '{"data": [{"text": "a"}], "version": 1}',
        '{"0": {"text": "a"}}',
        '{"text": {"0": "a"}}',
        '{"text": ["a"]}',
        '\ufeff[{"text": "a"}]',
    ],
)
def test_json_rows_may_be_inside_an_object(tmp_path: Path, content: str) -> None:
    (tmp_path / "rows.json").write_text(content)
    assert read(tmp_path / "rows.json") == [{"text": "a"}]


def test_a_byte_order_mark_and_blank_lines_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('\ufefftext\r\n"a\nb"\r\n\r\nc\r\n')
    assert read(tmp_path / "rows.csv") == [{"text": "a\nb"}, {"text": "c"}]
    (tmp_path / "rows.jsonl").write_text('\ufeff{"text": "a"}\n\n{"text": 3}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl, row 3: column 'text' holds int"):
        read(tmp_path / "rows.jsonl")


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    assert read(write(tmp_path / "rows.jsonl", [{"text": "a"}])) == [{"text": "a"}]
    assert read(write(tmp_path / "rows.jsonl", [{"text": "b"}])) == [{"text": "b"}]


PARQUET = (
    "damaged, or not a Parquet file (Parquet magic bytes not found in footer. Either the file is "
)

BROKEN = {
    "cut.jsonl": (
        b'{"text": "a"}\n{"text": "b',
        "{path}, row 2: not JSON (Unterminated string starting at: column 10); expected one JSON "
        "object per line",
    ),
    "latin.jsonl": (
        b'{"text": "a"}\n{"text": "\xfc"}\n',
        "{path}, row 2: not UTF-8 (byte 11 is 0xfc); expected one JSON object per line",
    ),
    "half.jsonl": (
        b'{"text": "a"}\n{"text": "\\ud83d"}\n',
        "{path}, row 2: not UTF-8 (half of a surrogate pair); expected one JSON object per line",
    ),
    "list.jsonl": (
        b'[{"text": "a"}]',
        "{path}, row 1: found list; expected a JSON object; for a list of objects use data=json",
    ),
    "number.jsonl": (b'{"text": "a"}\n3\n', "{path}, row 2: found int; expected a JSON object"),
    "nan.jsonl": (
        b'{"text": NaN}\n',
        "{path}, row 1: not JSON (NaN); expected one JSON object per line",
    ),
    "empty.jsonl": (b"", "data.train={path}: the file is empty"),
    "blank.jsonl": (b"\n\n", "data.train={path}: no rows"),
    "ragged.csv": (
        b"text,more\na,b\nc\n",
        "{path}, row 2: found 1 cells; expected 2, one per column",
    ),
    "latin.csv": (b"text\na\n\xfc\n", "{path}, row 2: column 'text' is not UTF-8; expected UTF-8"),
    "quote.csv": (
        b'text\na\n"b\nc\n',
        "data.train={path}, row 2: a quote is never closed, so the rest of the file would be one "
        "row; close it, or double a quote that is text",
    ),
    "twice.csv": (
        b"text,text\na,b\n",
        "data.train={path}: found the header 'text', 'text'; expected distinct column names in "
        "UTF-8",
    ),
    "names.csv": (
        b'"text"x,more\na,b\n',
        "data.train={path}: the header is not CSV (',' expected after '\"'); expected column names "
        "separated by commas",
    ),
    "open.csv": (
        b'"text,more\na,b\n',
        "data.train={path}: the header is not CSV (unexpected end of data); expected column names "
        "separated by commas",
    ),
    "header.csv": (b"text\n", "data.train={path}: no rows"),
    "object.json": (b'"a"', "data.train={path}: found str; expected a list of objects"),
    "mixed.json": (b'[{"text": "a"}, 3]', "{path}, row 2: found int; expected a JSON object"),
    "cut.json": (
        b'[{"text": "a"}, {"te',
        "data.train={path}: not JSON (Unterminated string starting at: column 18); expected a list "
        "of objects; for one object per line use data=jsonl",
    ),
    "text.parquet": (b"PAR1", "data.train={path}: damaged, or not a Parquet file ("),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_reported(tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as refused:
        read(tmp_path / name)
    expected = message.format(path=tmp_path / name)
    said = str(refused.value)
    assert said.startswith(expected) if expected.endswith("(") else said == expected


def test_a_truncated_parquet_file_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", ROWS)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError) as refused:
        read(path)
    assert str(refused.value).startswith(f"data.train={path}: {PARQUET}")


def test_a_value_of_parquet_that_python_lacks_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    offsets, data = (
        pyarrow.py_buffer(each) for each in (struct.pack("<5i", 0, 1, 3, 4, 5), b"a\xff\xfebc")
    )
    texts = pyarrow.Array.from_buffers(pyarrow.string(), 4, [None, offsets, data])
    times = pyarrow.array([0, 0, 2**62, 0], pyarrow.timestamp("ms"))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "at": times}), path)
    assert read(path, on_bad_row="skip") == [{"text": "a"}, {"text": "c"}]
    with pytest.raises(DataError) as refused:
        read(path)
    assert str(refused.value) == (
        f"{path}, row 2: a value cannot be read ('utf-8' codec can't decode byte 0xff in position "
        "0: invalid start byte)"
    )


def test_a_folder_without_such_files_is_reported(tmp_path: Path) -> None:
    folder = tmp_path / "parquet"
    folder.mkdir()
    with pytest.raises(DataError) as refused:
        read(folder)
    assert str(refused.value) == (
        f"data.train={folder}: no file in this folder ends in .parquet: use another "
        "folder, or choose data=csv, json or jsonl for files of that format"
    )


def damaged(folder: Path, damage: Callable[[Path], object]) -> Disk:
    rows = Dataset.from_list([{"text": "a"}])
    DatasetDict(train=rows, eval=rows).save_to_disk(folder)
    damage(next((folder / "eval").glob("*.arrow")))
    return Disk(path=str(folder), train="train", **{**FOREIGN, "eval": "eval"})


def test_a_damaged_saved_data_set_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        damaged(tmp_path / "missing", Path.unlink).load()
    assert str(refused.value) == (
        f"data.path={tmp_path / 'missing'}: the saved data set is incomplete: "
        "data-00000-of-00001.arrow is missing"
    )
    with pytest.raises(DataError, match=r"/cut: the saved data set is damaged \("):
        damaged(tmp_path / "cut", lambda path: path.write_bytes(path.read_bytes()[:-300])).load()
    shutil.rmtree(tmp_path / "cut")


def test_the_limits_keep_the_first_rows_after_the_hold_out(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", [{"text": str(number)} for number in range(20)])
    every = source(path, eval=None, eval_fraction=0.25).load()
    few = source(path, eval=None, eval_fraction=0.25, max_train_samples=4).load()
    assert list(few.eval.usable()) == list(every.eval.usable())
    assert list(few.train.usable()) == list(every.train.usable())[:4]
    assert len(list(source(path, max_train_samples=400).load().train.usable())) == 20
    fewer = source(path, eval=None, eval_fraction=0.25, max_eval_samples=2).load()
    assert list(fewer.eval.usable()) == list(every.eval.usable())[:2]
    assert list(fewer.train.usable()) == list(every.train.usable())


def test_a_held_out_row_is_named_by_its_place_in_the_file(tmp_path: Path) -> None:
    rows = [{"text": "a"}] * 9 + [{"text": ""}]
    path = write(tmp_path / "rows.csv", rows)
    splits = source(path, eval=None).load()
    with pytest.raises(DataError, match=rf"^{path}, row 10: column 'text' is empty"):
        [*splits.train.usable(), *splits.eval.usable()]


def test_on_bad_row_skip_leaves_bad_rows_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('oops\n{"other": 1}\n{"text": "a"}\n[]\n{"text": ""}\n{"text": "b"}\n')
    assert read(path, on_bad_row="skip") == [{"text": "a"}, {"text": "b"}]
    with pytest.raises(DataError, match="row 1: not JSON"):
        read(path)
    path.write_text("oops\n")
    with pytest.raises(DataError, match="row 1: not JSON"):
        read(path, on_bad_row="skip")
