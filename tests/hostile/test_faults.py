"""What file systems, links, consoles and kills do to a run: named in one line, and nothing lost."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.conftest import CACHE, ROOT, SHORT, Finished, environment, run, train
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


# Links that someone placed


LINKED = (
    ".lock",
    "train.log",
    ".hydra",
    "result.json",
    "eval.jsonl",
    "checkpoints/pruned/.lock",
    "checkpoints/pruned/checkpoint-1",
    "checkpoints/pruned/.checkpoint-1.partial",
    "checkpoints/pruned/final",
)


@pytest.mark.parametrize("kind", ["file", "folder", "nothing"])
def test_nothing_is_written_through_a_link(tmp_path: Path, kind: str) -> None:
    folder, target = tmp_path / "run", tmp_path / "target"
    for number, name in enumerate(LINKED):
        path, to = folder / name, target / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        target.mkdir(exist_ok=True)
        if kind == "file":
            to.write_text("mine")
        elif kind == "folder":
            to.mkdir()
            (to / "mine").write_text("mine")
        path.symlink_to(to)
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    done = train(folder, *QUICK)
    assert done.code == 0, done.errors
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before
    assert done.result["status"] == "completed"
    left = [path.name for path in folder.rglob("*") if path.is_symlink()]
    assert left == ["damaged-checkpoint-1"]


def test_a_sweep_writes_through_no_link(tmp_path: Path) -> None:
    target, folder = tmp_path / "target", tmp_path / "sweep"
    for name in ("multirun.yaml", "0/train.log", "0/.hydra", "report.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)
    given = ("--multirun", f"hydra.sweep.dir={folder}", *QUICK, "model.keep_layers=99,98")
    done = train(tmp_path / "run", *given)
    assert "2 of 2 jobs did not complete" in done.errors
    assert not target.exists()
    assert (folder / "0" / "train.log").is_file()


# Consoles


CONSOLES = {
    "a full disk": "os.dup2(os.open('/dev/full', os.O_WRONLY), number)",
    "a dead reader": "r, w = os.pipe(); os.close(r); os.dup2(w, number)",
    "closed": "os.close(number)",
    "read-only": "os.dup2(os.open('/dev/null', os.O_RDONLY), number)",
}


@pytest.mark.parametrize("console", CONSOLES)
@pytest.mark.parametrize("numbers", ["(2,)", "(1, 2)"])
def test_no_console_ends_a_training(tmp_path: Path, console: str, numbers: str) -> None:
    # Python's streams know from the start what they write to.
    streams = "sys.stdout = sys.__stdout__ = open(1, 'w', closefd=False)\n"
    streams += "sys.stderr = sys.__stderr__ = open(2, 'w', closefd=False)"
    streams = "sys.stderr = sys.__stderr__ = None" if console == "closed" else streams
    code = f"import os, sys\nfor number in {numbers}:\n    {CONSOLES[console]}\n{streams}\n"
    done = given(code, tmp_path / "run", *QUICK)
    assert done.code == 0
    assert done.result["status"] == "completed"
    assert not list((tmp_path / "run").glob(".*.partial"))


def test_ctrl_c_while_modules_are_imported(tmp_path: Path) -> None:
    (tmp_path / "hydra.py").write_text("import os\nos.kill(os.getpid(), 2)\n")
    paths = os.pathsep.join((str(tmp_path), str(ROOT / "src")))
    env = environment(PYTHONPATH=paths)
    for command in (["-m", "train"], [str(Path(sys.executable).with_name("lamina")), "scan"]):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


# Completed runs


KILLED = """
import os, sys

def hook(event, arguments):
    if event in ("open", "os.rename", "os.remove") and {name!r} in str(arguments[0]):
        if event != "open" or arguments[1] not in ("r", "rb", None) or (arguments[2] or 0) & 3:
            os.kill(os.getpid(), 9)

sys.addaudithook(hook)
"""
"""Kills the process at its first write to a path with a name."""


@pytest.fixture(scope="module")
def completed(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A completed run of its own."""
    done = train(tmp_path_factory.mktemp("completed") / "run", *QUICK)
    assert done.code == 0, done.errors
    return done


def kept(folder: Path) -> dict[str, bytes]:
    """Return what a second start must not change."""
    paths = [folder / "result.json", *(folder / "checkpoints" / "pruned" / "final").iterdir()]
    return {str(path): path.read_bytes() for path in paths}


@pytest.mark.parametrize("name", [".hydra/config.yaml", "train.log", ".hydra/over", "/.lock"])
def test_a_completed_run_started_again_and_killed_keeps_its_result(
    completed: Finished, name: str
) -> None:
    before = kept(completed.folder)
    killed = given(KILLED.format(name=name), completed.folder, *QUICK)
    assert killed.code == -signal.SIGKILL, killed.errors
    assert kept(completed.folder) == before
    again = train(completed.folder, *QUICK)
    assert again.code == 0, again.errors
    assert f"{completed.folder} is already complete" in again.errors
    assert kept(completed.folder) == before
    assert not (completed.folder / ".lock").exists()


def test_a_completed_run_is_not_trained_again_where_it_was_moved(
    completed: Finished, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(completed.folder, moved)
    before = kept(moved)
    again = train(moved, *QUICK)
    assert f"{moved} is already complete" in again.errors
    assert kept(moved) == before


def test_the_next_start_removes_what_killed_writes_left(
    completed: Finished, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(completed.folder, folder)
    left = [folder / name for name in (".result.json.77.partial", ".eval.jsonl.78.partial")]
    for path in left:
        path.mkdir()
        (path / "result.json").write_text("{")
    (folder / ".lock").write_text("77\nelsewhere\n")
    assert train(folder, *QUICK).code == 0
    assert not [path for path in (*left, folder / ".lock") if path.exists()]


# Damaged caches


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """A run that filled caches of its own, which its folder holds."""
    folder = tmp_path_factory.mktemp("cached")
    done = given(own_caches(folder), folder / "run", *CACHING)
    assert done.code == 0, done.errors
    return folder, done


CACHING = (*[each for each in QUICK if each != "evaluation=none"], "generator.train_rows=100")


def own_caches(folder: Path) -> str:
    """Return code with which a run uses caches in a folder."""
    datasets = f"datasets.config.HF_DATASETS_CACHE = pathlib.Path({str(folder)!r}) / 'datasets'"
    lamina = f"os.environ['LAMINA_CACHE'] = {str(folder / 'lamina')!r}"
    return f"import datasets, os, pathlib\n{datasets}\n{lamina}\n"


DAMAGED = [
    ("datasets/lamina/*/generator/*/*/*.arrow", damage)
    for damage in ("empty", "cut", "garbage", "at a batch")
]
DAMAGED += [("datasets/lamina/*/rows.arrow", damage) for damage in ("empty", "cut", "at a batch")]
DAMAGED += [("datasets/lamina/*/cache-*.arrow", damage) for damage in ("cut", "garbage")]
DAMAGED += [("datasets/lamina/*/generator/*/*/dataset_info.json", "cut")]
DAMAGED += [("lamina/baselines/*/baseline.json", damage) for damage in ("empty", "cut", "number")]


def damaged(content: bytes, damage: str) -> bytes:
    """Return a damaged file's content."""
    return {
        "empty": b"",
        "cut": content[: len(content) // 2],
        "garbage": os.urandom(len(content)),
        "at a batch": content[:-8],
        "number": content.replace(b'"loss": ', b'"loss": 1'),
    }[damage]


@pytest.mark.parametrize(("pattern", "damage"), DAMAGED)
def test_a_damaged_cache_is_made_again(
    cached: tuple[Path, Finished], tmp_path: Path, pattern: str, damage: str
) -> None:
    folder, first = cached
    for name in ("datasets", "lamina"):
        shutil.copytree(folder / name, tmp_path / name)
    paths = list(tmp_path.glob(pattern))
    assert paths
    whole = {path: path.read_bytes() for path in paths}
    for path in paths:
        path.write_bytes(damaged(whole[path], damage))
    done = given(own_caches(tmp_path), tmp_path / "run", *CACHING)
    assert done.code == 0, done.errors
    assert done.result["history"] == first.result["history"]
    assert done.metrics["baseline_eval_loss"] == first.metrics["baseline_eval_loss"]
    assert {len(path.read_bytes()) for path in paths} == {len(each) for each in whole.values()}
