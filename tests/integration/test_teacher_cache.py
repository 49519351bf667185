"""trainer.cache by the real command: killed, shared by runs, read by processes, and refused."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import SHORT, Finished, start, train
from tests.forked import Process
from tests.heal.test_teacher_cache import predictions

GIVEN = (
    *SHORT,
    "trainer=distill",
    "trainer.top_k=8",
    "selector=first",
    "generator.train_rows=60",
    "generator.eval_rows=10",
    "evaluation=none",
    "packing=false",
    "per_device_train_batch_size=2",
    "eval_steps=2",
    "save_steps=2",
    "max_steps=4",
)

CODE = """
import sys, time, lamina.heal.distillation.cache as cache
cache.TOKENS_PER_FILE = 200
write = cache.TeacherCache._write
def slow(*given):
    time.sleep({seconds}); return write(*given)
cache.TeacherCache._write = slow
from train import main; sys.argv[:1] = ["train"]; main()
"""


def started(folder: Path, cache: Path, *given: str, seconds: float = 0) -> Process:
    """Start a run that writes several files, each after some seconds."""
    code = CODE.format(seconds=seconds)
    overrides = (f"hydra.run.dir={folder}", *GIVEN, "trainer.cache=auto", *given)
    return start("-c", code, *overrides, cwd=folder.parent, LAMINA_CACHE=str(cache))


def killed(run: Process, when: Callable[[], bool]) -> None:
    with run:
        deadline = time.monotonic() + 120
        while not when():
            assert time.monotonic() < deadline
            assert run.poll() is None
            time.sleep(0.02)
        run.kill()


def files(cache: Path) -> dict[str, dict[str, bytes]]:
    found = cache.glob("teachers/*/teacher-*.safetensors")
    return {path.name: predictions(path) for path in found}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """An undisturbed run, with its cache beside it."""
    folder = tmp_path_factory.mktemp("whole")
    with started(folder / "run", folder / "cache") as run:
        done = run.completed(300)
    assert done.returncode == 0, done.stderr
    return Finished(0, done.stdout, done.stderr, folder / "run")


def test_runs_share_a_pass_that_was_killed(whole: Finished, tmp_path: Path) -> None:
    assert 0.9 < whole.metrics["captured_mass"] <= 1
    assert whole.metrics["kl"] > 0
    cache = tmp_path / "cache"
    killed(started(tmp_path / "one", cache, seconds=0.5), lambda: len(files(cache)) == 2)
    with started(tmp_path / "one", cache) as one, started(tmp_path / "two", cache) as two:
        both = [one.completed(300), two.completed(300)]
    assert [done.returncode for done in both] == [0, 0], both[0].stderr + both[1].stderr
    assert sum(done.stderr.count(" teaches: ") for done in both) == 1
    assert files(cache) == files(whole.folder.parent / "cache")
    took = set()
    for name in ("one", "two"):
        result = Finished(0, "", "", tmp_path / name).result
        assert result["history"] == whole.result["history"]
        assert result["metrics"]["captured_mass"] == whole.metrics["captured_mass"]
        took.add(result["metrics"]["teacher_cache_seconds"])
    (seconds,) = took
    assert seconds > 0.5  # the killed pass counts


def test_a_killed_training_resumes_to_the_last_bit_without_a_teacher(
    whole: Finished, tmp_path: Path
) -> None:
    cache, run = whole.folder.parent / "cache", tmp_path / "run"
    state = run / "checkpoints" / "pruned" / "checkpoint-2" / "trainer_state.json"
    killed(started(run, cache), state.is_file)
    with started(run, cache) as again:
        done = again.completed(300)
    assert done.returncode == 0, done.stderr
    assert " teaches: " not in done.stderr
    resumed = Finished(0, done.stdout, done.stderr, run)
    assert resumed.result["resumed_from"].endswith("checkpoint-2")
    assert resumed.result["history"] == whole.result["history"]
    assert resumed.metrics["eval_loss"] == whole.metrics["eval_loss"]


def test_a_repaired_model_has_the_same_teacher(whole: Finished, tmp_path: Path) -> None:
    given = ("repair=magnitude", "selector=uniform")
    with started(tmp_path / "run", whole.folder.parent / "cache", *given) as run:
        done = run.completed(300)
    assert done.returncode == 0, done.stderr
    assert " teaches: " not in done.stderr
    repaired = Finished(0, done.stdout, done.stderr, tmp_path / "run")
    assert repaired.metrics["captured_mass"] == whole.metrics["captured_mass"]
    assert repaired.result["repair"]["method"] == "magnitude"


def test_the_first_of_two_processes_writes_the_cache_for_both(
    whole: Finished, tmp_path: Path
) -> None:
    given = ("per_device_train_batch_size=1", "distributed=2", f"trainer.cache={tmp_path / 'own'}")
    done = train(tmp_path / "run", *GIVEN, *given)
    assert done.code == 0, done.errors
    assert [path.name for path in (tmp_path / "own").glob("teacher-*")] == [
        "teacher-00000.safetensors"
    ]
    found, expected = (
        [entry["loss"] for entry in each.result["history"]] for each in (done, whole)
    )
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_cache_of_other_data_and_one_cut_off_are_refused_before_weights_are_read(
    whole: Finished, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    (hashed,) = (whole.folder.parent / "cache" / "teachers").iterdir()
    shutil.copytree(hashed, own)
    given = (*GIVEN, f"trainer.cache={own}", "evaluation=default", "evaluation.baseline=true")
    other = train(tmp_path / "other", *given, "generator.train_rows=30")
    before = whole.result["provenance"]["data_fingerprint"][:16]
    now = other.result["provenance"]["data_fingerprint"][:16]
    assert (other.code, other.refusal) == (
        1,
        f"error: trainer.cache={own} was written with data {before}, this run has {now}: use "
        "another folder, or trainer.cache=auto\n",
    )
    assert other.metrics["baseline_eval_loss"] is None
    fits = train(tmp_path / "fits", *given, "dry_run=true")
    assert fits.code == 0, fits.errors
    answered = (*given, "data.answers=original", "trainer.temperature=2")
    asked = tmp_path / "asked"
    early = train(tmp_path / "early", *answered, LAMINA_CACHE=str(asked))
    assert (early.code, early.refusal) == (
        1,
        f"error: trainer.cache={own} was written with trainer.temperature 1.0, this run has 2.0: "
        "use another folder, or trainer.cache=auto\n",
    )
    assert not (asked / "answers").exists(), "refused before the original answers"
    path = own / "teacher-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    for more in ((), ("dry_run=true",)):
        cut = train(tmp_path / f"cut{len(more)}", *given, *more)
        assert (cut.code, cut.refusal) == (
            1,
            f"error: trainer.cache={own}: {path.name} is cut off or damaged: remove it, and the "
            "teacher writes it again\n",
        )
