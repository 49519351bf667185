"""lm-eval's tasks made from files of items as Lamina reads them, and what its command found."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COMMON: dict[str, Any] = {"dataset_path": "json", "test_split": "test", "target_delimiter": " "}
FORMS: dict[str, dict[str, Any]] = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "target": {
        "output_type": "loglikelihood",
        "doc_to_text": "context",
        "doc_to_target": "{{' ' + target}}",
        "metric_list": [{"metric": "acc"}],
    },
    "answer": {
        "output_type": "generate_until",
        "doc_to_text": "question",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "exact_match"}],
        "filter_list": [{"name": "stripped", "filter": [{"function": "remove_whitespace"}]}],
    },
    "text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [{"metric": "word_perplexity"}],
    },
}
"""Settings of a task by the field that tells an item's form."""


def write_task(
    folder: Path, name: str, rows: Sequence[Mapping[str, Any]], *, shots: int, max_new_tokens: int
) -> None:
    """Write a task of which the first `shots` rows are solved in front of each other one."""
    form = next(field for field in FORMS if field in rows[0])
    task: dict[str, Any] = {"task": name, **COMMON, **FORMS[form]}
    data = {"test": str(write_rows(folder / f"{name}.test.jsonl", rows[shots:]))}
    if form == "answer":
        until = {"until": ["\n\n"], "do_sample": False, "max_gen_toks": max_new_tokens}
        task["generation_kwargs"] = until
    if shots:
        data["solved"] = str(write_rows(folder / f"{name}.solved.jsonl", rows[:shots]))
        solved = {"split": "solved", "sampler": "first_n"}
        task |= {"fewshot_split": "solved", "fewshot_config": solved, "num_fewshot": shots}
    task["dataset_kwargs"] = {"data_files": data}
    (folder / f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML, too


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write one object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(model: str, folder: Path, output: Path, *, batch: int, dtype: str) -> list[str]:
    """Return lm-eval's command line for all tasks of a folder."""
    names = ",".join(sorted(path.stem for path in folder.glob("*.yaml")))
    return [
        str(Path(sys.executable).with_name("lm_eval")),
        "run",
        *("--model", "hf", "--model_args", f"pretrained={model},dtype={dtype}"),
        *("--tasks", names, "--include_path", str(folder), "--output_path", str(output)),
        *("--batch_size", str(batch), "--device", "cpu", "--log_samples"),
    ]


def samples(output: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what the command found of each item, by task, in the order of the file."""
    found = {}
    for path in output.rglob("samples_*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        name = path.name.removeprefix("samples_").rpartition("_")[0]
        found[name] = sorted(rows, key=lambda row: int(row["doc_id"]))
    return found
