"""Files that Lamina wrote, damaged or tampered with: lamina.json, result.json, eval.jsonl, .env."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REFERENCE, lamina, train
from tests.hostile.conftest import Refused
from tests.hostile.models import MISSING, Content, changed, encodings, tampered, write

MANIFESTS: dict[str, tuple[Content, str]] = {
    **{case: (text, "") for case, text in encodings(changed("lamina.json")).items()},
    "a source that is a number": ({"source_model": 5}, "source_model is 5, expected str | None"),
    "a revision that is a list": ({"revision": [1]}, "revision is [1], expected str | None"),
    "no variant": ({"model_type": MISSING}, "model_type is missing, expected str"),
    "a variant that is a list": ({"model_type": ["x"]}, "model_type is ['x'], expected str"),
    "an adapter that is a number": ({"adapter": 5}, "adapter is 5, expected str | None"),
    "no depth": ({"num_layers": MISSING}, "num_layers is missing, expected int"),
    "a depth of text": ({"num_layers": "12"}, "num_layers is '12', expected int"),
    "no layers": ({"kept_layers": MISSING}, "kept_layers is missing, expected list"),
    "layers of text": ({"kept_layers": "all"}, "kept_layers is 'all', expected list"),
    "layers that are text": ({"kept_layers": ["a"]}, "kept_layers is ['a'], expected ascending"),
    "a negative layer": ({"kept_layers": [-1]}, "kept_layers is [-1], expected ascending"),
    "a layer twice": ({"kept_layers": [1, 1]}, "kept_layers is [1, 1], expected ascending"),
    "a layer beyond": ({"kept_layers": [99]}, "kept_layers is [99], expected ascending"),
    "layers in disorder": ({"kept_layers": [2, 1]}, "kept_layers is [2, 1], expected ascending"),
    "a trillion layers": (
        {"kept_layers": [0, 10**12], "num_layers": 10**12 + 1},
        "kept_layers is [0, 1000000000000], expected ascending indices of 1000000000001 layers",
    ),
    "an export in a list": ({"export": [1]}, "export is [1], expected dict | None"),
    "layers in lists": ({"kept_layers": [[1]]}, "kept_layers is [[1]], expected ascending"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest(case: str, refused: Refused, tmp_path: Path) -> None:
    content, reason = MANIFESTS[case]
    given = changed("lamina.json", **content) if isinstance(content, dict) else content
    model = tampered(tmp_path / "model", "lamina.json", given)
    for command in (("show", model), ("export", model, "--output", "out")):
        refused(lamina(*command, cwd=tmp_path), f"{model}/lamina.json", reason)


RESULT: dict[str, Any] = {
    "status": "completed",
    "error": None,
    "model_type": "scratch",
    "num_layers": 12,
    "kept_layers": [*range(12)],
    "final": "final",
    "dtype": "float32",
    "overrides": [],
    "metrics": {"eval_loss": 1.0},
}
RESULTS: dict[str, tuple[Content, str]] = {
    **{case: (text, "") for case, text in encodings(RESULT).items()},
    "no status": ({"status": MISSING}, "status is missing, expected str"),
    "a status that is a list": ({"status": [1]}, "status is [1], expected str"),
    "a final that is a number": ({"final": 5}, "final is 5, expected str | None"),
    "a dtype that is a list": ({"dtype": [1]}, "dtype is [1], expected str | None"),
    "an unknown dtype": ({"dtype": "\x1b[31mred"}, r"dtype is '\x1b[31mred', expected float64"),
    "metrics in a list": ({"metrics": [1]}, "metrics is [1], expected dict"),
    "a loss of text": (
        {"metrics": {"eval_loss": "x"}},
        "metrics: eval_loss is 'x', expected int | float",
    ),
    "overrides of text": ({"overrides": "x"}, "overrides is 'x', expected list"),
    "overrides of numbers": ({"overrides": [1]}, "overrides holds what is not text"),
    "a depth in a list": ({"num_layers": [1]}, "num_layers is [1], expected int | None"),
}


def run_folder(folder: Path, result: Content, rows: Content = None) -> Path:
    folder.mkdir()
    (folder / "final").symlink_to(REFERENCE)
    write(folder / "eval.jsonl", rows)
    write(folder / "result.json", result)
    return folder


@pytest.mark.parametrize("case", RESULTS)
def test_a_result(case: str, refused: Refused, tmp_path: Path) -> None:
    content, reason = RESULTS[case]
    if isinstance(content, dict):
        fields = {**RESULT, **content}
        content = {key: value for key, value in fields.items() if value is not MISSING}
    run = run_folder(tmp_path / "run", content)
    for command in (("show", run), ("export", run, "--output", "out")):
        refused(lamina(*command, cwd=tmp_path), f"{run}/result.json", reason)


NO_FILE: dict[str, Callable[[Path], object]] = {"a pipe": os.mkfifo, "a folder": Path.mkdir}


@pytest.mark.parametrize("case", NO_FILE)
def test_a_result_that_is_no_file(case: str, refused: Refused, tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", NO_FILE[case])
    done = lamina("export", run, "--output", "out", cwd=tmp_path)
    refused(done, f"{run}/result.json cannot be read as JSON: not a regular file")


ROWS: dict[str, tuple[Content, str]] = {
    "a list": ("[1]\n", "row 1: expected a JSON object, found [1]"),
    "null": ("null\n", "row 1: expected a JSON object, found None"),
    "no JSON": ("\x1b[31mred\n", "row 1 cannot be read as JSON: Expecting value"),
    "nested": (b"[" * 200_000, "row 1 cannot be read as JSON: nested too deeply"),
    "binary": (bytes(range(128, 256)), "cannot be read as JSON: 'utf-8' codec"),
    "no tokens": ('{"loss": 1.0}\n', "row 1: input_ids is missing, expected list"),
    "tokens of text": (
        '{"loss": 1.0, "input_ids": "x", "labels": []}\n',
        "row 1: input_ids is 'x', expected list",
    ),
    "a negative token": (
        '{"loss": 1.0, "input_ids": [-5], "labels": [1]}\n',
        "row 1: input_ids is [-5], expected token ids",
    ),
    "a label of text": (
        '{"loss": 1.0, "input_ids": [5], "labels": ["x"]}\n',
        "row 1: labels is ['x'], expected token ids",
    ),
    "a loss of nothing": (
        '{"loss": 1.0, "input_ids": [5, 6], "labels": [5, -100]}\n',
        "row 1: it has a loss, but no label",
    ),
    "a loss of text": (
        '{"loss": "x", "input_ids": [5], "labels": [1]}\n',
        "row 1: loss is 'x', expected int | float | None",
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_rows_of_an_evaluation(case: str, refused: Refused, tmp_path: Path) -> None:
    content, reason = ROWS[case]
    run = run_folder(tmp_path / "run", RESULT, content)
    done = lamina("export", run, "--output", "out", cwd=tmp_path)
    refused(done, f"{run}/eval.jsonl", reason)


def test_a_damaged_result_does_not_stop_a_sweep_from_being_shown(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    used = "sweeper: {params: null}, overrides: {task: []}, runtime: {config_sources: []}"
    write(sweep / "multirun.yaml", f"hydra: {{{used}}}")
    for number, content in enumerate(({"status": "\x1b[31mred\r\u202e"}, b"[1]", b"\xff")):
        (sweep / str(number)).mkdir()
        given = {**RESULT, **content} if isinstance(content, dict) else content
        write(sweep / str(number) / "result.json", given)
    done = lamina("show", sweep, cwd=tmp_path)
    assert done.code == 0, done.errors
    assert r"\x1b[31" in done.output
    assert done.output.replace("\n", "").isprintable()
    assert done.output.count("damaged\n") == 2
    assert "1: expected a JSON object, found [1]" in done.output


VERIFICATIONS = {
    "a list": ("[]", "expected a JSON object, found []"),
    "an engine in a list": ('{"vllm": [1]}', "vllm is [1], expected dict | None"),
    "no version": ('{"vllm": {}}', "vllm: version is missing, expected str"),
}


@pytest.mark.parametrize("case", VERIFICATIONS)
def test_a_verification(case: str, refused: Refused, tmp_path: Path) -> None:
    content, reason = VERIFICATIONS[case]
    rows = '{"loss": 1.0, "input_ids": [5, 6], "labels": [5, 6]}\n'
    run = run_folder(tmp_path / "run", RESULT, rows)
    (run / "final").unlink()
    model = tampered(run / "final", "verification.json", content)
    done = lamina("verify", run, "--engine", "transformers", cwd=tmp_path)
    refused(done, f"{model}/verification.json", reason)


SWEEPS = {
    "no YAML": ("hydra: [", "while parsing a flow node"),
    "no sweeper": ("hydra: {overrides: {task: []}}", "Missing key sweeper"),
    "a list": ("[1]", "damaged, or of another version"),
    "a billion jobs": (
        "hydra: {sweeper: {params: {seed: 'range(0,1e9)'}}, overrides: {task: []}, "
        "runtime: {config_sources: []}}",
        "seed=range(0,1e9): more than 10,000 jobs",
    ),
    "a secret": (
        "hydra: {sweeper: {params: {seed: '1,${oc.env:HF_TOKEN}'}}, overrides: {task: []}, "
        "runtime: {config_sources: []}}",
        "refers to the secret HF_TOKEN",
    ),
}


@pytest.mark.parametrize("case", SWEEPS)
def test_the_file_of_a_sweep(case: str, refused: Refused, tmp_path: Path) -> None:
    content, reason = SWEEPS[case]
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "multirun.yaml").write_text(content)
    done = lamina("show", "sweep", cwd=tmp_path)
    refused(done, "sweep/multirun.yaml: damaged, or of another version", reason)
    assert not (tmp_path / "sweep" / "report.csv").exists()


ADAPTERS: dict[str, tuple[Content, str]] = {
    **{case: (text, "") for case, text in encodings({"peft_type": "LORA"}).items()},
    "no type": ({"r": 8}, "peft_type is missing, expected str"),
    "a type that is a list": ({"peft_type": ["LORA"]}, "peft_type is ['LORA'], expected str"),
    "another type": ({"peft_type": "PROMPT_TUNING"}, "peft_type is PROMPT_TUNING, not LORA"),
    "an unknown type": ({"peft_type": "\x1b[31mred"}, r"peft_type is \x1b[31mred, not LORA"),
    "a rank of text": ({"peft_type": "LORA", "r": "x"}, "the adapter cannot be read"),
    "a rank of none": ({"peft_type": "LORA", "r": 0}, "the adapter cannot be read"),
    "modules of numbers": ({"peft_type": "LORA", "target_modules": 5}, "the adapter cannot be"),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_the_config_of_an_adapter(case: str, refused: Refused, tmp_path: Path) -> None:
    content, reason = ADAPTERS[case]
    final = tampered(tmp_path / "final", "adapter_config.json", content)
    for name in ("config.json", "model.safetensors"):
        (final / name).unlink()
    manifest = changed("lamina.json", source_model=str(REFERENCE), adapter="lora")
    write(final / "lamina.json", manifest)
    done = lamina("export", final, "--output", "out", cwd=tmp_path)
    refused(done, str(final), reason)


ENVIRONMENTS: dict[str, bytes] = {
    "UTF-16": "A=b\n".encode("utf-16"),
    "Latin-1": b"A=\xe9\n",
    "binary": bytes(range(128, 256)),
    "a NUL": b"HF_HOME=a\0b\n",
}


@pytest.mark.parametrize("case", ENVIRONMENTS)
def test_the_file_of_the_environment(case: str, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(ENVIRONMENTS[case])
    for command in (("show", REFERENCE), ("verify", REFERENCE, "--engine", "transformers")):
        refused(lamina(*command, cwd=tmp_path), ".env")


def test_a_pipe_in_place_of_the_environment_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".env")
    assert lamina("show", REFERENCE, cwd=tmp_path).code == 0


def test_a_damaged_result_does_not_stop_a_run_in_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    write(folder / "result.json", {**RESULT, "kept_layers": 5})
    done = train(folder, "experiment=quickstart", "model_name=nowhere/at/all")
    assert "no such folder" in done.errors
    assert json.loads((folder / "result.json").read_text())["status"] == "failed"
