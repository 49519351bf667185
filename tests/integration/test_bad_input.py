"""Bad input that only a running job can detect: one clear error and a failed result."""

import json
import shutil
from pathlib import Path

from tests.conftest import REFERENCE, SHORT, Finished, train

GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def rows(path: Path, *content: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return str(path)


def refused(done: Finished, *parts: str) -> None:
    assert done.code == 1, done.output
    lines = [line for line in done.errors.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, done.errors
    for part in parts:
        assert part in done.errors
    assert "Traceback" not in done.errors
    assert done.result["status"] == "failed"
    assert done.result["error"] in done.errors


def test_a_row_without_the_expected_columns_is_named(tmp_path: Path) -> None:
    path = rows(tmp_path / "rows.jsonl", *[GOOD] * 3, {"question": "a"}, *[GOOD] * 9)
    held = rows(tmp_path / "held.jsonl", GOOD)
    given = (*SHORT, "data=jsonl", f"data.train={path}", f"data.eval={held}")
    refused(
        train(tmp_path / "run", *given),
        f"{path}, row 4: column 'messages' is empty or missing (found question)",
    )


def test_an_empty_data_set_is_named(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.touch()
    given = (*SHORT, "data=jsonl", f"data.train={path}")
    refused(train(tmp_path / "run", *given), f"data.train={path}: the file is empty")


def test_a_folder_without_safetensors_is_named_before_torch_is_imported(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(REFERENCE / "config.json", folder)
    given = (*SHORT, f"model_name={folder}")
    refused(train(tmp_path / "run", *given), f"model_name={folder} has no safetensors weights")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    done = train(tmp_path / "run", *SHORT, "learning_rate=1e30", "evaluation=none", "max_steps=20")
    refused(done, "at step", "lower learning_rate=1e+30")


def test_an_export_that_would_not_be_exact_is_refused_before_training(tmp_path: Path) -> None:
    given = (*SHORT, "model=scratch", "adapter=lora", "export.form=adapter")
    done = train(tmp_path / "run", *given)
    refused(done, "export.form=adapter: an adapter cannot rebuild scratch-12of12")
    assert done.result["trainable_parameters"] is None
