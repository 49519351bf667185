"""A model measured in a separate process has the figures it has here."""

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lamina.depth.loading import load_model, load_tokenizer
from lamina.errors import ModelError, TrainingError
from lamina.measure.evaluate import Evaluation, answers, row_losses
from lamina.measure.protocol import ModelRef, Protocol, figures, final
from lamina.measure.results import Record
from lamina.measure.resumable import Place
from lamina.measure.serving_speed import SpeedSettings
from lamina.measure.tasks.files import read_evaluation, read_items
from lamina.measure.tasks.settings import TaskSettings
from lamina.weights.source import resolve
from tests.conftest import REFERENCE, Finished

KEPT = (0, 1, 2, 3, 8, 9)


def isolated(rows: list[dict[str, list[int]]]) -> Protocol:
    prompts = [(name, rows[n]["input_ids"][:9], "") for n, name in enumerate(("first", "second"))]
    tasks = TaskSettings(
        few_shot=0, limit=None, template="none", thinking=None, max_new_tokens=4, window=None,
        stride=None, bos="auto", batch_tokens=512,
    )  # fmt: skip
    speed = SpeedSettings(batch_sizes=[], prompt_tokens=[], new_tokens=2, repeats=1)
    wanted = Evaluation(
        baseline=True, reduced=True, reload=True, num_samples=2, max_new_tokens=6, tasks=[],
        task_settings=tasks, agreement=True, speed=speed,
    )  # fmt: skip
    return Protocol(
        rows=rows, prompts=prompts, max_tokens=256, max_new_tokens=6, isolated=True,
        wanted=wanted, original=None,
    )  # fmt: skip


def saved(folder: Path) -> ModelRef:
    return ModelRef(
        name=str(folder), revision=None, kept_layers=None, dtype="float32", in_4bit=False
    )


def rows_of(run: Finished) -> list[dict[str, list[int]]]:
    lines = (run.folder / "eval.jsonl").read_text().splitlines()[:20]
    return [{key: json.loads(line)[key] for key in ("input_ids", "labels")} for line in lines]


def test_tasks_and_agreement_are_the_same(pruned: Finished, tmp_path: Path) -> None:
    items = [{"context": "1 + 1 =", "choices": [" 2", " 3"], "label": 0}, {"text": "one two three"}]
    files = []
    for name, item in zip(("choose", "read"), items, strict=True):
        files.append(str(tmp_path / f"{name}.jsonl"))
        Path(files[-1]).write_text(json.dumps(item) + "\n")
    given = isolated(rows_of(pruned))
    ref = ModelRef(
        name=str(REFERENCE), revision=None, kept_layers=KEPT, dtype="float32", in_4bit=False
    )
    original = replace(ref, kept_layers=tuple(range(12)))
    given = replace(given, wanted=replace(given.wanted, tasks=files), original=original)
    found = []
    for place, protocol in (("apart", given), ("here", replace(given, isolated=False))):
        folder = tmp_path / place
        about = Place(
            folder=str(folder), role="model", name="m", revision=None, kept_layers=[*KEPT]
        )
        figures(ref, protocol, about)
        result = read_evaluation(folder)
        assert [*result.tasks] == ["eval_rows", "choose", "read"]
        assert result.tasks["read"].agreement is not None
        found.append((result.figures, result.model, result.key, read_items(folder)))
    assert found[0] == found[1]


def test_losses_and_answers_are_the_same(pruned: Finished) -> None:
    import torch

    rows, source = rows_of(pruned), resolve(str(REFERENCE))
    protocol = isolated(rows)
    model = load_model(source, KEPT, dtype=torch.float32)
    ref = ModelRef(
        name=source.name, revision=None, kept_layers=KEPT, dtype="float32", in_4bit=False
    )
    found = figures(ref, protocol)
    assert found.losses == row_losses(model, rows, max_tokens=256)
    prompts = [ids for _, ids, _ in protocol.prompts]
    assert found.answers == answers(model, load_tokenizer(source), prompts, 6)


def test_final_is_measured_as_a_user_loads_it(pruned: Finished) -> None:
    found = figures(saved(pruned.final), isolated(rows_of(pruned)))
    lines = (pruned.folder / "eval.jsonl").read_text().splitlines()[:20]
    recorded = [json.loads(line)["loss"] for line in lines]
    assert found.losses.row_means() == pytest.approx(recorded, abs=1e-6)


def test_a_failed_process_says_why(pruned: Finished, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no could not be measured: .*; see train\.log"):
        figures(saved(tmp_path / "no"), isolated(rows_of(pruned)))


DAMAGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "other": lambda tensors: {name: 2 * each for name, each in tensors.items()},
    "nan": lambda tensors: {name: each / 0 for name, each in tensors.items()},
    "missing": lambda tensors: dict(list(tensors.items())[1:]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_final_gives_the_same_message_as_in_this_process(
    pruned: Finished, tmp_path: Path, damage: str
) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(pruned.final, tmp_path / "final")
    (path,) = folder.glob("*.safetensors")
    save_file(DAMAGES[damage](load_file(path)), path, {"format": "pt"})
    protocol, said = isolated(rows_of(pruned)), []
    items = tmp_path / "items.jsonl"
    items.write_text(json.dumps({"context": "1 + 1 =", "choices": [" 2", " 3"], "label": 0}))
    protocol = replace(protocol, wanted=replace(protocol.wanted, tasks=[str(items)]))
    for each in (replace(protocol, isolated=False), protocol):
        record = Record(tmp_path, [])
        record.measured(eval_loss=1.5)
        record.update(kept_layers=[*range(8)], num_layers=12, final="final")
        with pytest.raises(ModelError) as refused:
            final(record, each, saved(folder), tolerance=0.03)
        said.append(str(refused.value))
        assert record.content["final"] is None
        assert not (tmp_path / "evaluation").exists()  # tasks may take hours
    assert said[0] == said[1]
    assert "loaded again" in said[0] or "tensors do not fit" in said[0]


def test_a_process_without_memory_says_so(
    pruned: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(command: list[str], **_: Any) -> Any:
        found = {"error": "CUDA out of memory", "kind": "MemoryError"}
        (Path(command[-1]) / "answer.json").write_text(json.dumps(found))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", answer)
    with pytest.raises(MemoryError, match="CUDA out of memory"):
        figures(saved(pruned.final), isolated(rows_of(pruned)))
