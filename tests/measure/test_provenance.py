"""The commit on record is Lamina's, never that of a repository that happens to surround it."""

import subprocess
from pathlib import Path

import pytest
from datasets import Dataset, concatenate_datasets

from lamina import __version__
from lamina.measure.provenance import fingerprint, git_state, package_versions

NONE = {"sha": None, "dirty": None}


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def committed(top: Path, package: str) -> tuple[Path, str]:
    """A repository that tracks a package of our name; return the package and the commit."""
    module = top / package / "measure" / "provenance.py"
    module.parent.mkdir(parents=True)
    module.write_text('"""Some code."""\n')
    git(top, "init", "--quiet")
    git(top, "add", "--all")
    git(top, "commit", "--quiet", "--message", "all")
    return top / package, git(top, "rev-parse", "HEAD")


def test_a_checkout_records_its_commit_and_its_changes(tmp_path: Path) -> None:
    package, commit = committed(tmp_path, "src/lamina")
    assert git_state(package) == {"sha": commit, "dirty": False}
    (package / "measure" / "new.py").touch()
    assert git_state(package) == {"sha": commit, "dirty": True}


@pytest.mark.parametrize(
    "place", ["venv/lib/python3.11/site-packages/lamina", "src/third_party/src/lamina"]
)
def test_a_package_inside_another_repository_records_no_commit(tmp_path: Path, place: str) -> None:
    package, _ = committed(tmp_path, place)
    assert git_state(package) == NONE
    assert package_versions()["lamina"] == __version__


def test_an_untracked_copy_in_the_place_of_a_checkout_records_no_commit(tmp_path: Path) -> None:
    (tmp_path / "README").touch()
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "all")
    (tmp_path / "src" / "lamina" / "measure").mkdir(parents=True)
    (tmp_path / "src" / "lamina" / "measure" / "provenance.py").touch()
    assert git_state(tmp_path / "src" / "lamina") == NONE


def test_without_a_repository_there_is_no_commit(tmp_path: Path) -> None:
    assert git_state(tmp_path) == NONE


def test_equal_rows_have_one_fingerprint_however_they_are_stored() -> None:
    def made(*numbers: range) -> Dataset:
        ids = [[[n] * (1 + n % 3) for n in part] for part in numbers]
        parts = [Dataset.from_dict({"input_ids": part, "labels": part}) for part in ids]
        return concatenate_datasets(parts)

    expected = fingerprint(made(range(2500)))
    assert fingerprint(made(range(7), range(7, 1999), range(1999, 2500))) == expected
    chosen = made(range(1000), range(999, 2500)).select([*range(999), *range(1000, 2501)])
    assert fingerprint(chosen) == expected
    assert fingerprint(made(range(2499))) != expected
    assert fingerprint(made(range(2499), range(2500, 2501))) != expected
