"""The real command on users' own data: a CSV file with two bad rows, and a saved data set."""

import csv
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from datasets import DatasetDict, load_dataset

from tests.conftest import ROOT, Finished, forking, train

SAMPLE = ROOT / "tests/data/gsm8k/sample.jsonl"
STEPS = (
    "experiment=quickstart",
    "max_steps=2",
    "eval_steps=2",
    "save_steps=2",
    "logger=none",
    "evaluation=none",
)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's first rows as CSV under German names; row 3 has no answer, row 5 is ragged."""
    path = tmp_path_factory.mktemp("table") / "rows.csv"
    rows = [json.loads(line) for line in SAMPLE.read_text().splitlines()[:60]]
    cells = [[row["question"], row["answer"]] for row in rows]
    cells[2][1] = ""
    cells[4].append("more")
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["frage", "antwort"], *cells])
    return path


@pytest.fixture(scope="module")
def given(table: Path) -> tuple[str, ...]:
    names = "data.columns={question: frage, answer: antwort}"
    return (*STEPS, "data=csv", f"data.train={table}", names, "data.eval_fraction=0.1")


@pytest.fixture(scope="module")
def trained(table: Path, given: tuple[str, ...]) -> Finished:
    limit = ("data.max_train_samples=20", "max_seq_length=1024")
    return train(table.parent / "run", *given, "data.on_bad_row=skip", *limit)


def test_rows_are_trained_and_their_tokens_counted(trained: Finished) -> None:
    assert trained.code == 0, trained.errors
    # Of the 60 rows 6 are held out, row 3 among them; row 5 is in the first 20 of the others, and
    # the longest of those has 1,033 tokens.
    assert trained.result["data"] == {
        "train": {
            "rows": 19,
            "rows_skipped": 1,
            "rows_dropped": 0,
            "tokens_in": 10_344,
            "tokens": 10_335,
            "tokens_dropped": 9,
            "tokens_trained": 5_714,
            "pack_fill": 10_335 / (11 * 1024),
        },
        "eval": {
            "rows": 5,
            "rows_skipped": 1,
            "rows_dropped": 0,
            "tokens_in": 2_368,
            "tokens": 2_368,
            "tokens_dropped": 0,
            "tokens_trained": 1_082,
            "pack_fill": 2_368 / (3 * 1024),
        },
    }
    shown = " ".join(trained.output.split())
    assert "data 10,335 tokens of 10,344, 9 dropped, rows skipped: 1, packs 91.8% full" in shown


def test_skipped_rows_are_listed(trained: Finished, table: Path) -> None:
    empty = "column 'antwort' is empty or missing (found frage); expected text"
    ragged = "found 3 cells; expected 2, one per column"
    listed = (trained.folder / "skipped_rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in listed] == [
        {"origin": str(table), "row": 5, "problem": ragged},
        {"origin": str(table), "row": 3, "problem": empty},
    ]
    assert "reading frage and antwort as prompt and completion\n" in trained.errors
    for problem, number, count in ((ragged, 5, 20), (empty, 3, 6)):
        assert (
            f"skipped 1 of {count} rows, listed in skipped_rows.jsonl:\n"
            f"  {table}, row {number}: {problem}\n"
        ) in trained.errors


def test_a_bad_row_ends_the_run_by_default(table: Path, given: tuple[str, ...]) -> None:
    done = train(table.parent / "refused", *given, "max_seq_length=1024")
    assert done.code == 1
    assert done.errors.splitlines()[-1] == (
        f"error: {table}, row 5: found 3 cells; expected 2, one per column"
    )


def test_a_run_that_would_drop_tokens_is_refused(table: Path, given: tuple[str, ...]) -> None:
    done = train(table.parent / "lost", *given, "data.on_bad_row=skip", "max_seq_length=256")
    assert done.code == 1
    assert "lie beyond max_seq_length=256, but data.max_dropped=0.01: " in done.errors


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of all paths; a folder's time also shows files that were removed again."""
    found = {path: path.stat() for path in (folder, *folder.rglob("*"))}
    return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make a folder read-only by permissions, and by a mount for root if it may mount."""
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o500 if path.is_dir() else 0o400)
    for options in (("--bind", str(folder)), ("-o", "remount,ro,bind")):
        subprocess.run(["mount", *options, str(folder)], check=False, capture_output=True)
    yield
    # Lazily: files of it may still be open.
    subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o700)


def test_a_saved_data_set_is_only_read(tmp_path: Path) -> None:
    saved, cache = tmp_path / "saved", tmp_path / "cache"
    rows = load_dataset("json", data_files=str(SAMPLE), split="train[:40]")
    DatasetDict(train=rows, eval=rows.select(range(8))).save_to_disk(saved)
    before, content = listing(saved), {p: p.read_bytes() for p in saved.rglob("*.*")}
    given = (*STEPS, "data=disk", f"data.path={saved}", "max_seq_length=1024")
    named = tmp_path / "named"  # read at import: a link, such that the commands can be forked
    variable = {"HF_DATASETS_CACHE": str(named)}
    cache.mkdir()
    named.symlink_to(cache)
    with forking(**variable):
        for folder, more in (("dry", ["dry_run=true"]), ("run", [])):
            done = train(tmp_path / folder, *given, *more, **variable)
            assert done.code == 0, done.errors
            assert listing(saved) == before
        assert {p: p.read_bytes() for p in saved.rglob("*.*")} == content
        assert {path.relative_to(cache).parts[0] for path in cache.rglob("*.arrow")} == {"lamina"}
        named.unlink()
        with read_only(saved):
            again = train(tmp_path / "again", *given, **variable)
            assert listing(saved) == before
    assert again.code == 0, again.errors
    assert again.result["history"] == done.result["history"]
