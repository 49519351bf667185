"""The evidence: its command at its smallest on the reference model, and the page of its results."""

import json
import os
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REFERENCE, ROOT

EVIDENCE = ROOT / "benchmarks" / "evidence"
SMALLEST = (
    *("documents=6", "rows=40", "texts=[gsm8k]", "tasks=[piqa]", "task_items=4", "scan_tokens=300"),
    *("scan_sets=2", "selectors=[first,last]", "depths=[0.9,0.67]", "methods=[nothing,sft_lora]"),
    *("budget=300", "seeds=[1,2]", "best=1", "far=[0.67]", "predict_budget=300", "predict_runs=2"),
    "overrides=[max_seq_length=256,gradient_accumulation_steps=1,eval_steps=2,save_steps=2,"
    "packing=false,budget.tokens=null,max_steps=2,evaluation.task_settings.max_new_tokens=4]",
)
FIGURES = (
    "results-curve.svg",
    "results-healing.svg",
    "results-loss-bytes.svg",
    "results-loss-decode.svg",
    "results-predict.svg",
    "results-scan-gsm8k.svg",
)


def script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EVIDENCE / name, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )


def stopped_after(sweep: str, part: str, settings: list[str], folder: Path) -> None:
    command = [sys.executable, EVIDENCE / "run.py", part, "jobs=1", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )
    while process.poll() is None and not (folder / part / f"{sweep}.costs.json").is_file():
        time.sleep(0.1)
    time.sleep(1)  # the next one has begun
    process.terminate()
    _, error = process.communicate()
    assert error == "error: stopped; the same command continues\n"


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    sums = [
        {"question": f"{a} + {b}?", "answer": f"canary {a + b}"}
        for a, b in product(range(20), range(4))
    ]
    write(folder / "gsm8k" / "train.jsonl", sums[:60])
    write(folder / "gsm8k" / "test.jsonl", sums[60:])
    chats = [{"instruction": row["question"], "response": row["answer"]} for row in sums]
    write(folder / "tasks" / "dolly.jsonl", chats)
    for name in ("valid", "test"):
        texts = [{"text": f"canary {number} " * 9} for number in range(8)]
        write(folder / "tasks" / f"wikitext2_{name}.jsonl", texts)
    items = [
        {"context": f"canary {number}", "choices": ["even", "odd"], "label": number % 2}
        for number in range(8)
    ]
    write(folder / "tasks" / "piqa.jsonl", items)
    return folder


def test_the_plan_is_printed_and_too_many_hours_are_refused(tmp_path: Path) -> None:
    own = f"model_name={REFERENCE}", f"output={tmp_path}", "hours=1"
    done = script("run.py", "heal", "--plan", *own)
    lines = done.stdout.splitlines()
    assert lines[0].endswith("reference, 12 layers; hours of one thread:")
    assert lines[1] == "  heal      25 runs  15.0 h"
    assert done.stderr == "error: more than hours=1: name fewer parts, or set hours=16\n"
    assert [*tmp_path.iterdir()] == []


def test_a_part_that_does_not_exist_is_refused() -> None:
    done = script("run.py", "hael")
    assert done.stderr == "error: no part hael: which, curve, heal, tasks, far, predict\n"


def test_all_parts_give_result_files_and_one_page(data: Path, tmp_path: Path) -> None:
    results, docs = tmp_path / "results", tmp_path / "docs"
    docs.mkdir()
    own = [f"model_name={REFERENCE}", f"data={data}", f"output={tmp_path / 'runs'}"]
    own += [f"results={results}", *SMALLEST]
    stopped_after("gsm8k", "which", own, tmp_path / "runs")
    assert not (tmp_path / "runs" / "which" / "keep-11").exists()
    assert not results.exists()
    assert script("run.py", "which", *own).returncode == 0
    stopped_after("nothing", "heal", own, tmp_path / "runs")
    readme = tmp_path / "README.md"
    readme.write_text((ROOT / "README.md").read_text())
    given = ("--results", results, "--docs", docs, "--readme", readme)
    assert script("page.py", *given).returncode == 0
    assert "Healings that did not run yet: sft\\_lora. |" in readme.read_text()
    done = script("run.py", *own)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "which gsm8k" not in done.stdout  # it had ended
    again = script("run.py", *own)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.splitlines()[-1].startswith("  in all")  # nothing ran
    other = script("run.py", *own, "documents=7")
    assert other.stderr == (
        f"error: {tmp_path / 'runs' / 'texts'} has texts of other settings: choose another output\n"
    )
    written = sorted(path.name for path in results.iterdir())
    assert written == [
        "curve.json",
        "far.json",
        "heal.json",
        "predict.json",
        "tasks.json",
        "which.json",
    ]
    for path in results.iterdir():
        text = path.read_text()
        assert [
            word for word in ("canary", "input_ids", str(tmp_path), str(ROOT)) if word in text
        ] == []
    for folder in (docs, tmp_path / "again"):
        folder.mkdir(exist_ok=True)
        given = ("--results", results, "--docs", folder, "--readme", readme)
        assert script("page.py", *given).returncode == 0
    pages = {path.name: path.read_bytes() for path in docs.iterdir()}
    assert sorted(pages) == [*FIGURES, "results.md"]
    assert pages == {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    given = ("--results", results, "--docs", docs, "--readme", readme, "--check")
    assert script("page.py", *given).returncode == 0
    first_screen = pages["results.md"].decode().partition("\n## ")[0].splitlines()
    assert set(first_screen[4:]) <= set(readme.read_text().splitlines())
    page = docs / "results.md"
    assert b"not measured yet" not in pages["results.md"]
    assert b"did not run" not in pages["results.md"]
    assert b"\n# layers: 8 of 12 layers\n" in pages["results.md"]  # the model card
    page.write_text(page.read_text() + "by hand")
    changed = script("page.py", *given)
    assert changed.stderr == f"error: {page} is not what its result files give: run page.py\n"


def test_rows_of_the_hub_take_the_form_of_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EVIDENCE))
    from fetch import SETS, articles

    choices = {"text": ["sun", "moon"], "label": ["A", "B"]}
    item = {"context": "Which?", "choices": ["sun", "moon"], "label": 1}
    for name, question in (("arc_easy", "question"), ("openbookqa", "question_stem")):
        form = SETS[f"tasks/{name}"][3]
        assert form({question: "Which?", "choices": choices, "answerKey": "B"}) == item
    form = SETS["tasks/lambada"][3]
    assert form({"text": "she saw the sun"}) == {"context": "she saw the", "target": "sun"}
    form = SETS["tasks/dolly"][3]
    row = {"instruction": "Sum up.", "context": "A text.", "response": "Yes."}
    assert form(row) == {"instruction": "Sum up.\n\nA text.", "response": "Yes."}
    form = SETS["tasks/hellaswag"][3]
    row = {"activity_label": "Sun", "ctx": "[header] How [title] Look", "endings": ["[step] up"]}
    assert form({**row, "label": "0"})["context"] == "Sun: How. Look"
    lines = [" \n", " = Sun = \n", " It shines .\n", " = = Age = = \n", " = Moon = \n"]
    first = " = Sun = \n It shines .\n = = Age = = \n"
    assert articles(lines) == [first, " = Moon = \n"]
