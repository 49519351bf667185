"""Replaced files and folders are complete, or as they were."""

from pathlib import Path

import pytest

from lamina.errors import OutputError
from lamina.runtime.files import refuse_unwritable, replacing


def test_a_folder_whose_body_fails_keeps_its_content(tmp_path: Path) -> None:
    def write(folder: Path, name: str, text: str) -> None:
        folder.mkdir()
        (folder / name).write_text(text)

    final = tmp_path / "final"
    for text in ("first", "second"):
        with replacing(final) as partial:
            write(partial, "weights", text)
    (tmp_path / "weights").mkdir()
    with pytest.raises(IsADirectoryError), replacing(final) as partial:
        write(partial, "../../weights", "third")
    (tmp_path / "weights").rmdir()
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert (final / "weights").read_text() == "second"


def test_a_file_whose_body_fails_keeps_its_content(tmp_path: Path) -> None:
    file = tmp_path / "state"
    with replacing(file) as partial:
        partial.write_text("first")
    with pytest.raises(FileNotFoundError), replacing(file):
        pass  # the body wrote nothing
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert file.read_text() == "first"


def test_a_folder_is_tried_without_creating_it(tmp_path: Path) -> None:
    refuse_unwritable(tmp_path / "a" / "b", "output_dir")
    assert list(tmp_path.iterdir()) == []
    reason = "output_dir: /proc/a cannot be written: .*; use another output_dir"
    with pytest.raises(OutputError, match=reason):
        refuse_unwritable(Path("/proc/a"), "output_dir")
