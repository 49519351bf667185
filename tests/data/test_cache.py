"""The cache of prepared rows: what it reuses, and what it prepares again."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, Value, config

from lamina.data import cache, synthetic, tokenization
from lamina.data.byte_tokenizer import build_tokenizer
from lamina.data.cache import cached_rows
from lamina.data.feed import feed
from lamina.data.sources import Disk, Files, Synthetic
from lamina.errors import OutputError
from tests.conftest import FOREIGN, GENERATED, run, start

TURNS = [{"role": "user", "content": "copy AB"}, {"role": "assistant", "content": "AB"}]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": TURNS, "chat": TURNS}) + "\n" for _ in "abcd"))
    return path


def source(path: Path, **changes: Any) -> Files:
    return Files(format="jsonl", train=str(path), **{**FOREIGN, **changes})


def made(data: Any, tokenizer: Any = None, length: int = 64) -> list[str]:
    """Tokenize, and return the cache files of both splits."""
    tokenizer = tokenizer or build_tokenizer()
    fed = feed(data, tokenizer, max_seq_length=length, num_prompts=1)
    return [file["filename"] for side in (fed.train, fed.eval) for file in side.rows.cache_files]


def test_equal_rows_are_tokenized_once(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made(source(rows))
    assert len(first) == 2
    monkeypatch.setattr(tokenization.Tokenization, "row", None)
    assert made(source(rows)) == first
    with pytest.raises(TypeError):
        made(source(rows, loss_on="all"))


def test_all_that_determines_the_ids_is_part_of_the_cache_key(
    rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(source(rows))
    tokenizer = build_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "<|im_start|>.")
    larger = build_tokenizer()
    larger.add_tokens(["AB"])
    shorter = made(source(rows, max_dropped=1.0), length=16)
    others = [
        made(source(rows), tokenizer),
        made(source(rows), larger),
        shorter,
        made(source(rows, loss_on="all")),
        made(source(rows, columns={"messages": "chat"})),
        made(source(rows, on_bad_row="skip")),
        made(source(rows, eval_fraction=0.25)),
        made(source(rows, max_train_samples=1)),
    ]
    monkeypatch.setattr(cache, "PROTOCOL", cache.PROTOCOL + 1)
    others.append(made(source(rows)))
    # The held-out rows do not depend on how many of the others are trained on.
    assert others[-2][1] == first[1]
    found = [first[0], *(other[0] for other in others)]
    assert len(set(found)) == len(found)


def test_a_file_changed_without_a_new_size_or_time_is_read_again(rows: Path) -> None:
    first, before = made(source(rows)), rows.stat()
    rows.write_text(rows.read_text().replace("copy AB", "copy BA"))
    os.utime(rows, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (rows.stat().st_size, rows.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert not set(made(source(rows))) & set(first)


def test_generated_rows_are_cached_by_number_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def generated(**changes: Any) -> list[str]:
        given = {"train_rows": 20, "eval_rows": 10, "seed": 1, **changes}
        return made(Synthetic(**given, **GENERATED))

    first = generated()
    monkeypatch.setattr(synthetic, "generate", None)
    assert generated() == first
    for changes in ({"train_rows": 21}, {"seed": 2}):
        with pytest.raises(TypeError):
            generated(**changes)


FEED = """
import sys
from pathlib import Path
from datasets import config
config.HF_DATASETS_CACHE = Path(sys.argv[1])
from lamina.data.sources import Synthetic
from lamina.data.feed import feed
from lamina.data.byte_tokenizer import build_tokenizer
own = dict(train_rows=300, eval_rows=30, seed=1)
own |= dict(loss_on="auto", chat_template=None, max_dropped=0.01)
data = Synthetic(**own, answers="given", answer_settings=None)
fed = feed(data, build_tokenizer(), max_seq_length=64, num_prompts=1)
print([file["filename"] for side in (fed.train, fed.eval) for file in side.rows.cache_files])
"""


def test_processes_share_rows_even_if_they_start_together(tmp_path: Path) -> None:
    given = ("-c", FEED, tmp_path)
    with start(*given, cwd=tmp_path) as one, start(*given, cwd=tmp_path) as other:
        said = [process.completed(120).stdout for process in (one, other)]
    assert said[0] == said[1] != ""
    found = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.arrow")}
    assert len(found) == 4
    assert run(*given, cwd=tmp_path).stdout == said[0]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.arrow")} == found


DIE = """
import os, signal
from lamina.data import synthetic
from lamina.data import tokenization

def killed(after, call):
    def count(*arguments):
        killed.calls += 1
        if killed.calls == after:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments)
    killed.calls = 0
    return count

{name} = killed({after}, {name})
"""


def test_a_killed_process_leaves_no_partial_rows(tmp_path: Path) -> None:
    def ended(script: str) -> tuple[int, list[list[int]]]:
        script += 'print([row["input_ids"] for row in fed.train.rows])'
        done = run("-c", script, tmp_path, cwd=tmp_path)
        return done.returncode, json.loads((done.stdout.splitlines() or ["[]"])[-1])

    for name, after in (("synthetic.split_of", 100), ("tokenization.Tokenization.row", 250)):
        dying = FEED.replace("data =", DIE.format(name=name, after=after) + "data =")
        assert ended(dying) == (-signal.SIGKILL, [])
    data = Synthetic(train_rows=300, eval_rows=30, seed=1, **GENERATED)
    fed = feed(data, build_tokenizer(), max_seq_length=64, num_prompts=1)
    assert ended(FEED) == (0, [row["input_ids"] for row in fed.train.rows])


def test_without_a_writable_cache_rows_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Dataset.from_list([{"messages": TURNS}] * 4).save_to_disk(tmp_path / "saved")
    disk = Disk(path=str(tmp_path / "saved"), **{**FOREIGN, "train": "train"})
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert made(disk) == []
    assert not list(tmp_path.rglob("cache-*"))
    monkeypatch.undo()
    assert len(made(disk)) == 2


def _one_row(protocol: str) -> Any:
    yield {"text": protocol}


def test_an_unwritable_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    message = (
        f"HF_DATASETS_CACHE: {tmp_path}/file/cache cannot be written: Not a directory; use "
        "another HF_DATASETS_CACHE"
    )
    with pytest.raises(OutputError, match=re.escape(message)):
        cached_rows(_one_row, Features(text=Value("string")))
