"""A checkpoint folder outside the run folder, taken by a process that dies on the way."""

from pathlib import Path
from typing import Any

import pytest

from lamina.errors import OutputError
from lamina.heal.checkpoints import claim


def test_the_owner_of_a_folder_is_known_also_if_it_dies_while_it_takes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, run, another = tmp_path / "shared" / "pruned", tmp_path / "run", tmp_path / "another"
    claim(folder, run, "auto", {}, {})
    (folder / "checkpoint-3").mkdir()

    def write_half(path: Path, content: Any, *_: Any, **__: Any) -> None:
        with path.open("w") as file:
            file.write(str(content)[:3])
        raise KeyboardInterrupt

    for name in ("write_bytes", "write_text"):
        monkeypatch.setattr(Path, name, write_half)
    with pytest.raises(KeyboardInterrupt):
        claim(folder, run, "auto", {}, {})
    monkeypatch.undo()
    claim(folder, run, "auto", {}, {})
    with pytest.raises(OutputError, match=f"holds the result of {run}, which is never overwritten"):
        claim(folder, another, "auto", {}, {})
