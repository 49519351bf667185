"""What file systems, links, consoles and kills do to a run: named in one line, and nothing lost."""

import errno
import json
import os
import textwrap
from pathlib import Path

import pytest

from tests.conftest import CACHE, SHORT, Finished, run, train
from tests.hostile.conftest import Refused

QUICK = (*SHORT, "max_steps=1", "eval_steps=1", "save_steps=1", "evaluation=none", "logger=none")
ROWS = [
    {"prompt": f"{a} plus {b} is", "completion": f" {a + b}"} for a in range(6) for b in range(6)
]

FAILING = """
import builtins, fnmatch, io, os, sys

def failing(call, is_writing):
    def called(path, *arguments, **options):
        matches = isinstance(path, (str, os.PathLike)) and fnmatch.fnmatch(str(path), {pattern!r})
        if matches and (is_writing(*arguments, **options) == {writing}):
            raise OSError({code}, os.strerror({code}), str(path))
        return call(path, *arguments, **options)
    return called

def mode(mode="r", *_, **__):
    return any(each in "wax+" for each in mode)

def flags(flags, *_, **__):
    return bool(flags & (os.O_WRONLY | os.O_RDWR))

for module, name, is_writing in (
    (io, "open", mode), (builtins, "open", mode), (os, "open", flags),
    (os, "mkdir", lambda *_, **__: True), (os, "stat", lambda *_, **__: False),
):
    if name != "stat" or {stat}:
        setattr(module, name, failing(getattr(module, name), is_writing))
"""
"""Makes each access to a path that matches a pattern fail, as a broken disk does."""

MAIN = """
import train
train.main()
"""


def given(code: str, folder: Path, *overrides: str, cwd: Path | None = None) -> Finished:
    """Run `python -m train` in a folder after some Python code."""
    own = (f"hydra.run.dir={folder}", *overrides)
    done = run("-c", textwrap.dedent(code) + MAIN, *own, cwd=cwd or folder.parent)
    return Finished(done.returncode, done.stdout, done.stderr, folder)


def failing(pattern: str, code: int, *, writing: bool, stat: bool = False) -> str:
    """Return code with which the paths of a pattern fail."""
    return FAILING.format(pattern=pattern, code=code, writing=writing, stat=stat)


FULL = (errno.ENOSPC, errno.EDQUOT)
BROKEN = (errno.EIO, errno.ESTALE, errno.EACCES, errno.ELOOP)
WRITTEN = [
    *[("*/run", "", code) for code in (*FULL, *BROKEN, errno.EROFS, errno.ENOTDIR)],
    *[("*/train.log", "", code) for code in (*FULL, *BROKEN, errno.EROFS)],
    *[("*/.hydra/config.yaml", "", code) for code in (*FULL, *BROKEN)],
    *[("*/run/.lock", "hydra.run.dir: ", code) for code in FULL],
    *[("*/run/.lock", "", code) for code in (*BROKEN, errno.EROFS)],
    *[("*/run/*/result.json", "", code) for code in (*FULL, *BROKEN, errno.EFBIG)],
    *[("*/pruned/.lock", "", code) for code in (errno.EROFS, *BROKEN)],
    *[("*/eval.jsonl", "", code) for code in (errno.ENOSPC, errno.EIO)],
]
"""A pattern of paths, the key that is named, and the error of each write there."""


@pytest.mark.parametrize(("pattern", "key", "code"), WRITTEN)
def test_a_failed_write_names_path_and_reason(
    tmp_path: Path, refused: Refused, pattern: str, key: str, code: int
) -> None:
    done = given(failing(pattern, code, writing=True), tmp_path / "run", *QUICK)
    file = "" if key else f"/{Path(pattern).name} ".replace("/run ", " ")
    refused(
        done,
        f"error: {key}{tmp_path / 'run'}",
        f"{file}",
        f"cannot be written: {os.strerror(code)}",
    )
    if code in FULL:
        assert "make room and start the same command again in that folder" in done.errors


def last_line(done: Finished) -> str:
    """Return the error of a run that failed once it had trained, below its progress."""
    assert done.code == 1
    assert "Traceback" not in done.output + done.errors
    return done.errors.splitlines()[-1]


@pytest.mark.parametrize(
    ("pattern", "place", "code"),
    [
        ("*/trainer_state.json", "output_dir: {folder} ", errno.EDQUOT),
        ("*/trainer_state.json", "{folder}/.checkpoint-1.partial/checkpoint-1/", errno.EACCES),
        ("*/final/lamina.json", "{folder}/.final.partial/final/lamina.json ", errno.EFBIG),
        ("*/final/lamina.json", "{folder}/.final.partial/final/lamina.json ", errno.EIO),
    ],
)
def test_a_failed_write_after_the_training_is_named(
    tmp_path: Path, pattern: str, place: str, code: int
) -> None:
    done = given(failing(pattern, code, writing=True), tmp_path / "run", *QUICK)
    place = place.format(folder=tmp_path / "run" / "checkpoints" / "pruned")
    assert last_line(done).startswith(f"error: {place}")
    assert f"cannot be written: {os.strerror(code)}" in last_line(done)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A data file of our own."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def on(rows: Path) -> tuple[str, ...]:
    """Return overrides with which a quick run reads a file."""
    own = ("data=jsonl", f"data.train={rows}", "data.eval=null", "data.eval_fraction=0.2")
    return (*QUICK, *own)


@pytest.mark.parametrize(
    ("code", "stat"),
    [*[(code, False) for code in (*BROKEN, errno.ENAMETOOLONG)], (errno.EIO, True), (13, True)],
)
def test_an_unreadable_data_file_is_not_the_caches_fault(
    tmp_path: Path, refused: Refused, rows: Path, code: int, stat: bool
) -> None:
    broken = failing("*/rows.jsonl", code, writing=False, stat=stat)
    done = given(broken, tmp_path / "run", *on(rows))
    refused(done, str(rows), f"cannot be read: {os.strerror(code)}")
    assert "HF_DATASETS_CACHE" not in done.errors


@pytest.mark.parametrize("code", [*FULL, errno.EIO, errno.EROFS, errno.EACCES])
def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, refused: Refused, rows: Path, code: int
) -> None:
    done = given(failing("*/lamina/*.arrow", code, writing=True), tmp_path / "run", *on(rows))
    key = "HF_DATASETS_CACHE: " if code in FULL else ""
    where = f"error: {key}{os.environ['HF_DATASETS_CACHE']}"
    refused(done, where, f" cannot be written: {os.strerror(code)}")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_cache_of_figures_that_cannot_be_written_is_named(
    tmp_path: Path, refused: Refused, code: int
) -> None:
    baseline = (each for each in QUICK if each != "evaluation=none")
    broken = failing("*/baseline.json", code, writing=True)
    done = given(broken, tmp_path / "run", *baseline, f"generator.seed={code + 100}")
    refused(done, f"error: {CACHE.name}/baselines/", f"cannot be written: {os.strerror(code)}")


def test_a_limit_on_file_sizes_is_named(tmp_path: Path) -> None:
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\n"
    whole = ("adapter=full", "generator.train_rows=100")  # a checkpoint of several MB
    done = given(limit, tmp_path / "run", *QUICK, *whole)
    assert last_line(done).startswith("error: output_dir: ")
    assert "cannot be written: File too large" in last_line(done)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("file", "written: Not a directory; use another hydra.run.dir"),
        ("file/below", "written: Not a directory; use another hydra.run.dir"),
        ("/dev/null", "written: Not a directory; use another hydra.run.dir"),
        ("n" * 300, "written: File name too long; use another hydra.run.dir"),
        ("loop/run", "read: Too many levels of symbolic links"),
    ],
)
def test_a_run_folder_that_cannot_be(
    tmp_path: Path, refused: Refused, place: str, reason: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    done = train(tmp_path / place, *QUICK, cwd=tmp_path)
    refused(done, f"{tmp_path / place} cannot be {reason}")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')", "has been removed"),
        ("os.mkdir(b'\\xff'); os.chdir(b'\\xff')", "is not UTF-8"),
    ],
)
def test_a_lost_current_folder(tmp_path: Path, refused: Refused, code: str, reason: str) -> None:
    done = given(f"import os, train\n{code}\n", tmp_path / "run", *QUICK)
    refused(done, "error: the current folder", reason)
