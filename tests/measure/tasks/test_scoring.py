"""The reference model's figures, against the plainest way to compute them."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from lamina.errors import ConfigError, DataError
from lamina.measure.evaluate import answers
from lamina.measure.tasks.files import ItemResult, TaskResult
from lamina.measure.tasks.items import read_tasks
from lamina.measure.tasks.prompts import Prompts
from lamina.measure.tasks.scoring import evaluate_tasks
from lamina.measure.tasks.settings import TaskSettings
from tests.conftest import REFERENCE, environment
from tests.measure.tasks.conftest import SETTINGS, write_file


def evaluated(
    model: Any,
    tokenizer: Any,
    file: str,
    settings: TaskSettings = SETTINGS,
    original: Any = None,
    done: Sequence[ItemResult] = (),
) -> tuple[TaskResult, list[ItemResult]]:
    """Return a task's result, and what was written of its items, in the file's order."""
    tasks, written = read_tasks([file], settings), list[ItemResult]()
    (result,) = evaluate_tasks(
        model, tokenizer, tasks, settings, write=written.extend, original=original, done=done
    ).values()
    return result, sorted(written, key=lambda item: item.id)


def log_likelihood(model: Any, before: list[int], after: list[int]) -> float:
    ids = torch.tensor([before + after])
    with torch.no_grad():
        found = model(ids).logits[0, :-1].log_softmax(-1)
    return found[len(before) - 1 :].gather(1, ids[0, len(before) :, None]).sum().item()


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("batch_tokens", [1, 64, 4096])
def test_likelihoods_equal_a_loop_over_choices(
    model: Any, tokenizer: Any, files: dict[str, str], batch_tokens: int, shots: int
) -> None:
    settings = replace(SETTINGS, batch_tokens=batch_tokens, few_shot=shots)
    result, items = evaluated(model, tokenizer, files["choices"], settings)
    rows = [json.loads(line) for line in Path(files["choices"]).read_text().splitlines()]
    solved = "".join(f"{r['context']} {r['choices'][r['label']]}\n\n" for r in rows[:shots])
    assert [item.id for item in items] == [*range(shots, len(rows))]
    right = []
    for row, item in zip(rows[shots:], items, strict=True):
        context = tokenizer(solved + row["context"])["input_ids"]
        whole = [tokenizer(f"{solved}{row['context']} {c}")["input_ids"] for c in row["choices"]]
        expected = [log_likelihood(model, context, ids[len(context) :]) for ids in whole]
        assert item.log_likelihoods == pytest.approx(expected, abs=1e-4)
        per_character = [value / len(c) for value, c in zip(expected, row["choices"], strict=True)]
        assert item.correct == (max(range(len(expected)), key=expected.__getitem__) == row["label"])
        best = max(range(len(expected)), key=per_character.__getitem__)
        assert item.correct_norm == (best == row["label"])
        right.append(item.correct)
    mean, count = sum(right) / len(right), len(right)
    assert result.metrics["acc"].value == mean
    assert result.metrics["acc"].stderr == pytest.approx(math.sqrt(mean * (1 - mean) / (count - 1)))
    chances = [1 / len(row["choices"]) for row in rows[shots:]]
    assert result.metrics["acc"].chance == pytest.approx(sum(chances) / count)


def test_a_target_is_right_if_it_is_what_the_model_says(
    model: Any, tokenizer: Any, files: dict[str, str]
) -> None:
    result, items = evaluated(model, tokenizer, files["target"])
    rows = [json.loads(line) for line in Path(files["target"]).read_text().splitlines()]
    nll = tokens = 0.0
    for row, item in zip(rows, items, strict=True):
        before = tokenizer(row["context"])["input_ids"]
        ids = tokenizer(f"{row['context']} {row['target']}")["input_ids"]
        with torch.no_grad():
            likeliest = model(torch.tensor([ids])).logits[0, len(before) - 1 : -1].argmax(-1)
        assert item.correct == (likeliest.tolist() == ids[len(before) :])
        nll -= log_likelihood(model, before, ids[len(before) :])
        tokens += len(ids) - len(before)
    assert result.metrics["loss"].value == pytest.approx(nll / tokens, abs=1e-4)
    assert result.metrics["acc"].chance is None


@pytest.mark.parametrize("batch_tokens", [1, 300, 10_000])
def test_perplexity_equals_a_direct_computation(
    model: Any, tokenizer: Any, files: dict[str, str], batch_tokens: int
) -> None:
    result, _ = evaluated(
        model, tokenizer, files["text"], replace(SETTINGS, batch_tokens=batch_tokens)
    )
    nll, tokens = [], []
    for line in Path(files["text"]).read_text().splitlines():
        ids = torch.tensor(tokenizer(json.loads(line)["text"])["input_ids"])
        with torch.no_grad():
            logits = model(ids[None]).logits[0, :-1]
        nll.append(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum").item())
        tokens.append(len(ids) - 1)
    loss = sum(nll) / sum(tokens)
    assert result.metrics["loss"].value == pytest.approx(loss, abs=1e-4)
    assert result.metrics["perplexity"].value == pytest.approx(math.exp(loss), rel=1e-4)
    assert result.metrics["loss"].n == len(nll) == result.items


@pytest.mark.parametrize(("window", "stride"), [(16, 16), (16, 5), (40, 1), (7, None)])
def test_strided_windows_equal_a_loop_over_tokens(
    model: Any, tokenizer: Any, files: dict[str, str], window: int, stride: int | None
) -> None:
    settings = replace(SETTINGS, window=window, stride=stride, limit=2, bos="always")
    result, items = evaluated(model, tokenizer, files["text"], settings)
    stride = stride or window
    for line, item in zip(Path(files["text"]).read_text().splitlines()[:2], items, strict=True):
        ids = [tokenizer.eos_token_id, *tokenizer(json.loads(line)["text"])["input_ids"]]
        nll = 0.0
        for target in range(1, len(ids)):
            # The last token of the window that scores this one.
            later = max(0, target - window)
            end = min(len(ids) - 1, window + -(-later // stride) * stride)
            seen = ids[max(0, end - window) : target]
            nll -= log_likelihood(model, seen, [ids[target]])
        assert item.nll == pytest.approx(nll, abs=1e-3)
        assert item.tokens == len(ids) - 1
    assert result.protocol["window"] == window
    assert result.protocol["stride"] == stride


def test_the_error_of_a_loss_is_over_documents(
    model: Any, tokenizer: Any, files: dict[str, str]
) -> None:
    result, items = evaluated(model, tokenizer, files["text"])
    nll, tokens = [item.nll or 0 for item in items], [item.tokens or 0 for item in items]
    # The jackknife of the ratio, which the estimator approximates.
    left_out = [(sum(nll) - n) / (sum(tokens) - t) for n, t in zip(nll, tokens, strict=True)]
    mean, count = sum(left_out) / len(left_out), len(left_out)
    jackknife = math.sqrt((count - 1) / count * sum((each - mean) ** 2 for each in left_out))
    assert result.metrics["loss"].stderr == pytest.approx(jackknife, rel=0.2)
    one, _ = evaluated(model, tokenizer, files["text"], replace(SETTINGS, limit=1))
    assert one.metrics["loss"].stderr is None


@pytest.mark.parametrize("template", ["none", "chat"])
@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_answers_equal_those_one_by_one(
    model: Any, tokenizer: Any, files: dict[str, str], template: str, batch_tokens: int
) -> None:
    settings = replace(SETTINGS, template=template, batch_tokens=batch_tokens)
    result, items = evaluated(model, tokenizer, files["generation"], settings)
    rows = [json.loads(line) for line in Path(files["generation"]).read_text().splitlines()]
    prompts = [Prompts(tokenizer, settings).question(row["question"], ()) for row in rows]
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    alone = answers(model, tokenizer, ids, settings.max_new_tokens)
    stop = "" if template == "chat" else "\n\n"
    cut = [text.split(stop)[0] if stop else text for text in alone]
    assert [item.answer for item in items] == cut
    right = [said.strip() == row["answer"] for said, row in zip(cut, rows, strict=True)]
    assert [item.correct for item in items] == right
    assert sum(right) >= (8 if template == "chat" else 0)
    assert result.health is not None
    assert result.health.ended + result.health.capped == pytest.approx(1)
    assert result.protocol["template"] == template


@pytest.mark.parametrize("bos", ["auto", "always", "never"])
@pytest.mark.parametrize("template", ["none", "chat"])
def test_an_end_that_the_tokenizer_adds_is_not_before_the_answer(
    model: Any, tokenizer: Any, files: dict[str, str], template: str, bos: str
) -> None:
    """As that of a Llama saved with add_eos_token does."""
    settings, ending = replace(SETTINGS, template=template, bos=bos, limit=3), deepcopy(tokenizer)
    ending.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", tokenizer.eos_token_id)]
    )
    assert ending("1")["input_ids"][-1] == tokenizer.eos_token_id
    for file in files.values():
        plain, items = evaluated(model, tokenizer, file, settings)
        same, again = evaluated(model, ending, file, settings)
        assert (same.items_hash, again) == (plain.items_hash, items)


def test_an_interrupted_evaluation_scores_only_the_rest(
    model: Any, tokenizer: Any, files: dict[str, str]
) -> None:
    for kind, file in files.items():
        whole, items = evaluated(model, tokenizer, file)
        again, rest = evaluated(model, tokenizer, file, done=items[1::2])
        assert [item.id for item in rest] == [item.id for item in items[::2]], kind
        figures = [
            {name: metric.value for name, metric in each.metrics.items()} for each in (whole, again)
        ]
        assert figures[0] == pytest.approx(figures[1], rel=1e-6)
        assert whole.items_hash == again.items_hash


def test_agreement_with_the_original_is_exact(
    model: Any, tokenizer: Any, files: dict[str, str]
) -> None:
    same, _ = evaluated(model, tokenizer, files["text"], original=model)
    assert same.agreement is not None
    assert same.agreement.kl.value == pytest.approx(0, abs=1e-6)
    assert same.agreement.top1.value == 1
    from lamina.depth.loading import load_model
    from lamina.weights.source import resolve

    less = load_model(resolve(str(REFERENCE)), range(11), dtype=torch.float32).eval()
    found, items = evaluated(less, tokenizer, files["text"], original=model)
    divergence, equal, tokens = 0.0, 0, 0
    for line in Path(files["text"]).read_text().splitlines():
        ids = torch.tensor([tokenizer(json.loads(line)["text"])["input_ids"]])
        with torch.no_grad():
            p, q = (each(ids).logits[0, :-1].log_softmax(-1) for each in (model, less))
        divergence += torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum").item()
        equal += int((p.argmax(-1) == q.argmax(-1)).sum())
        tokens += ids.shape[1] - 1
    assert found.agreement is not None
    assert found.agreement.kl.value == pytest.approx(divergence / tokens, abs=1e-5)
    assert found.agreement.top1.value == equal / tokens
    assert all(item.kl is not None for item in items)


def test_the_hash_is_of_what_is_scored(
    model: Any, tokenizer: Any, files: dict[str, str], tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in Path(files["choices"]).read_text().splitlines()]
    whole, _ = evaluated(model, tokenizer, files["choices"])
    same, _ = evaluated(model, tokenizer, write_file(tmp_path / "same.jsonl", rows))
    rows[0]["label"] = 1 - min(1, rows[0]["label"])
    other, _ = evaluated(model, tokenizer, write_file(tmp_path / "other.jsonl", rows))
    assert whole.items_hash == same.items_hash != other.items_hash


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (
            {"window": 100_000},
            "text",
            "window=100000: the model's longest sequence has 2048 tokens",
        ),
        (
            {"window": 8, "stride": 9},
            "text",
            "stride=9: with windows of 8 tokens, some would be in none",
        ),
        (
            {"max_new_tokens": 100_000},
            "generation",
            "max_new_tokens=100000: the model's longest sequence has 2048 tokens, which leaves "
            "none for the question",
        ),
    ],
)
def test_a_setting_that_the_model_cannot_meet_is_refused(
    model: Any, tokenizer: Any, files: dict[str, str], change: dict[str, Any], kind: str, said: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        evaluated(model, tokenizer, files[kind], replace(SETTINGS, **change))
    longest = str(model.config.max_position_embeddings)
    assert str(raised.value) == f"evaluation.task_settings.{said.replace('2048', longest)}"


def test_a_later_task_is_refused_before_the_first_one_is_scored(
    model: Any, tokenizer: Any, files: dict[str, str]
) -> None:
    settings, written = replace(SETTINGS, window=4096), list[Any]()
    tasks = read_tasks([files["choices"], files["text"]], settings)
    with pytest.raises(ConfigError, match=r"window=4096: the model's longest sequence has 2048"):
        evaluate_tasks(model, tokenizer, tasks, settings, write=written.append)
    assert written == []


def test_an_answer_longer_than_the_model_reads_is_refused(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    longest = model.config.max_position_embeddings
    rows = [{"context": "a", "target": "1+" * longest}]
    file = write_file(tmp_path / "long.jsonl", rows)
    with pytest.raises(DataError) as raised:
        evaluated(model, tokenizer, file)
    assert f"{file}: an answer of item 0 has" in str(raised.value)
    assert str(raised.value).endswith(f"expected 1 to {longest}, the model's longest sequence")


TWO = """
import json, os, sys
from dataclasses import asdict
from datetime import timedelta
import torch
from torch.distributed import init_process_group, destroy_process_group
from transformers import AutoModelForCausalLM, AutoTokenizer
from lamina.measure.tasks.items import read_tasks
from lamina.measure.tasks.scoring import evaluate_tasks
from lamina.measure.tasks.settings import TaskSettings
settings, names, model, output = json.loads(sys.argv[1])
init_process_group("gloo", timeout=timedelta(seconds=120))
settings, written = TaskSettings(**settings), []
found = evaluate_tasks(
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
    AutoTokenizer.from_pretrained(model),
    read_tasks(names, settings),
    settings,
    write=written.extend,
)
rank = os.environ["RANK"]
with open(f"{output}/{rank}.json", "w") as file:
    result = {name: asdict(each) | {"seconds": 0} for name, each in found.items()}
    json.dump([result, [asdict(item) for item in written]], file)
destroy_process_group()
"""


def test_two_processes_equal_one(
    model: Any, tokenizer: Any, files: dict[str, str], tmp_path: Path
) -> None:
    names = list(files.values())
    script = tmp_path / "two.py"
    script.write_text(TWO)
    given = json.dumps([asdict(SETTINGS), names, str(REFERENCE), str(tmp_path)])
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        [sys.executable, *launch, str(script), given],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (first, items), (second, nothing) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)
    )
    assert nothing == []
    assert first == second
    alone = evaluate_tasks(model, tokenizer, read_tasks(names, SETTINGS), SETTINGS)
    assert sum(each.items for each in alone.values()) == len(items)
    for name, each in alone.items():
        values = {key: metric.value for key, metric in each.metrics.items()}
        found = {key: metric["value"] for key, metric in first[name]["metrics"].items()}
        assert found == pytest.approx(values, abs=1e-6)
        assert first[name]["items_hash"] == each.items_hash
