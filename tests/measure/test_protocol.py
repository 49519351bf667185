"""The figures of the original are cached by all that they depend on."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lamina.measure.protocol import ModelRef, figures, original
from lamina.measure.results import Record
from lamina.measure.resumable import Place
from lamina.measure.tasks.files import read_evaluation
from tests.conftest import REFERENCE, environment
from tests.measure.test_isolated import isolated


def test_other_settings_ends_template_or_tokenizer_are_another_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path / "cache"))
    model, task = tmp_path / "model", tmp_path / "asked.jsonl"
    shutil.copytree(REFERENCE, model)
    task.write_text(json.dumps({"question": "1 + 1", "answer": "2"}))
    ref = ModelRef(
        name=str(model), revision=None, kept_layers=range(12), dtype="float32", in_4bit=False
    )
    row = {"input_ids": [5, 6, 7], "labels": [5, 6, 7]}
    protocol = replace(isolated([row, row]), isolated=False, original=ref)
    protocol = replace(protocol, wanted=replace(protocol.wanted, tasks=[str(task)]))
    record = Record(tmp_path / "run", [])
    record.content |= {"kept_layers": [0], "num_layers": 12, "eval_fingerprint": "", "final": ""}
    changes = {
        "README.md": ("", ""),
        "config.json": ('"rope_theta": 10000.0', '"rope_theta": 37.0'),
        "generation_config.json": ('"eos_token_id": [', '"eos_token_id": [14, '),
        "chat_template.jinja": ("{", " {"),
        "tokenizer_config.json": ("<|pad|>", "<|im_end|>"),
    }
    keys = []
    for name, change in changes.items():
        file = model / name
        file.write_text(file.read_text().replace(*change, 1))
        original(record, protocol)
        keys.append(read_evaluation(tmp_path / "run" / "evaluation" / "original").key)
    assert len({*keys}) == len(changes)
    assert len([*tmp_path.glob("cache/evaluations/*")]) == len(changes)


def test_an_original_that_is_back_is_compared_with(tmp_path: Path) -> None:
    task = tmp_path / "read.jsonl"
    task.write_text(json.dumps({"text": "1 + 1 = 2"}))
    ref = ModelRef(
        name=str(REFERENCE), revision=None, kept_layers=range(9), dtype="float32", in_4bit=False
    )
    row = {"input_ids": [5, 6, 7], "labels": [5, 6, 7]}
    protocol = replace(isolated([row, row]), prompts=(), isolated=False)
    protocol = replace(protocol, wanted=replace(protocol.wanted, tasks=[str(task)]))
    place = Place(folder=str(tmp_path), role="model", name="m", revision=None, kept_layers=None)
    figures(ref, protocol, place)
    assert read_evaluation(tmp_path).tasks["read"].agreement is None
    figures(ref, replace(protocol, original=replace(ref, kept_layers=range(12))), place)
    assert read_evaluation(tmp_path).tasks["read"].agreement is not None


TWO = """
import sys, time
from dataclasses import replace
from pathlib import Path
from torch import distributed as processes
from transformers import AutoModelForCausalLM, AutoTokenizer
from lamina.measure import evaluate, serving_speed
from lamina.measure.protocol import loaded_figures
from lamina.measure.resumable import Place
from lamina.runtime import distributed
from tests.measure.test_isolated import isolated
output, model = Path(sys.argv[1]), sys.argv[2]
speed, answers = output / "speed", output / "answers"
def slow(path, found):
    def measured(*_):
        if distributed.is_first():
            time.sleep(1)
            path.touch()
        return found
    return measured
serving_speed.serving_speed, evaluate.answers = slow(speed, None), slow(answers, ["", ""])
reduce = processes.all_reduce
def checked(*given):
    assert distributed.is_first() or speed.exists(), "a collective, which times out"
    reduce(*given)
processes.all_reduce = checked
processes.init_process_group("gloo")
row = {"input_ids": [5, 6, 7], "labels": [5, 6, 7]}
protocol = replace(isolated([row, row]), rows=[])
place = Place(folder=str(output), role="model", name="m", revision=None, kept_layers=None)
loaded = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
loaded_figures(loaded, AutoTokenizer.from_pretrained(model), protocol, place)
assert answers.exists(), "the next collective would time out"
processes.destroy_process_group()
"""


def test_other_processes_wait_for_what_the_first_measures_alone(tmp_path: Path) -> None:
    """A collective ends a run after the ten minutes of NCCL, however long the first one works."""
    (tmp_path / "two.py").write_text(TWO)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, str(tmp_path / "two.py"), str(tmp_path), str(REFERENCE)],
        env=environment(PYTHONPATH=str(REFERENCE.parents[3])),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
