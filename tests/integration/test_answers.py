"""data.answers=original by the real command: killed, shared by two runs, and refused."""

import json
import sys
import time
from pathlib import Path

import pytest

from lamina.data.answers.answered import ANSWERS_FILE, UNFINISHED_FILE
from tests.conftest import SHORT, Finished, start, train

GIVEN = (
    *SHORT,
    "generator.train_rows=40",
    "generator.eval_rows=10",
    "max_steps=1",
    "eval_steps=1",
    "save_steps=1",
    "evaluation=none",
    "data.answers=original",
    "data.answer_settings.max_new_tokens=40",
    "data.answer_settings.batch_tokens=1",
    "data.answer_settings.temperature=1.5",
)

SLOW = """
import sys, time, lamina.data.answers.answering as a
append = a.append_rows
def slow(path, rows):
    append(path, rows); time.sleep(0.5)
a.append_rows = slow
from train import main; sys.argv[:1] = ["train"]; main()
"""


def test_a_killed_pass_goes_on_where_it_was_and_two_runs_share_it(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", *GIVEN, LAMINA_CACHE=str(tmp_path / "whole-cache"))
    assert whole.code == 0, whole.errors
    undisturbed = read(tmp_path / "whole-cache")
    counts = whole.result["data"]["answers"]
    assert sum(counts.values()) == 40
    assert f" {counts['kept']} kept, {counts['cut']} cut, {counts['looping']} looping, " in (
        whole.errors
    )
    (row,) = [each.split() for each in whole.output.splitlines() if each.startswith("answers ")]
    assert row[1:7] == f"{counts['kept']} of the original {counts['cut']} cut,".split()
    assert whole.result["data"]["train"]["rows"] == counts["kept"]
    assert "| data.answers | original |" in (whole.final / "README.md").read_text()

    cache = tmp_path / "cache"
    with start(
        "-c", SLOW, "hydra.run.dir=one", *GIVEN, cwd=tmp_path, LAMINA_CACHE=str(cache)
    ) as started:
        deadline = time.monotonic() + 120
        while len(lines(cache)) < 3:
            assert time.monotonic() < deadline
            assert started.poll() is None
            time.sleep(0.02)
        started.kill()
    known = len(lines(cache))
    assert 3 <= known < 40
    (unfinished,) = cache.glob(f"answers/*/{UNFINISHED_FILE}")
    with unfinished.open("a") as file:
        file.write('{"prompt": 1, "question": "co')  # a kill may leave half a line

    def again(name: str) -> tuple[object, ...]:
        return "-m", "train", f"hydra.run.dir={name}", *GIVEN

    env = {"cwd": tmp_path, "LAMINA_CACHE": str(cache)}
    with start(*again("one"), **env) as one, start(*again("two"), **env) as two:  # type: ignore[arg-type]
        both = [one.completed(300), two.completed(300)]
    assert [done.returncode for done in both] == [0, 0], both[0].stderr + both[1].stderr
    said = f" answers 40 prompts, {known} answered before\n"
    assert sum(done.stderr.count(said) for done in both) == 1
    assert read(cache) == undisturbed
    for name in ("one", "two"):
        result = Finished(0, "", "", tmp_path / name).result
        assert result["data"] == whole.result["data"]
        assert (
            result["provenance"]["data_fingerprint"]
            == (whole.result["provenance"]["data_fingerprint"])
        )
        assert result["metrics"]["eval_loss"] == whole.metrics["eval_loss"]


def read(cache: Path) -> str:
    (path,) = cache.glob(f"answers/*/{ANSWERS_FILE}")
    return path.read_text()


def lines(cache: Path) -> list[str]:
    found = [path.read_text() for path in cache.glob(f"answers/*/{UNFINISHED_FILE}")]
    return "".join(found).splitlines()


def test_a_dry_run_leaves_the_given_answers(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    done = train(tmp_path / "run", *GIVEN, "dry_run=true", LAMINA_CACHE=str(cache))
    assert done.code == 0, done.errors
    assert "data.answers=original: the dry run counts the given answers instead\n" in done.errors
    assert not (cache / "answers").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["model=scratch", "adapter=full"],
            "data.answers=original: model=scratch has no original: use data.answers=given",
        ),
        (
            ["data.answer_settings.max_new_tokens=512"],
            "data.answer_settings.max_new_tokens=512: max_seq_length=512 leaves no room for a "
            "prompt: lower it",
        ),
        (
            ["data.answer_settings.temperature=-1"],
            "data.answer_settings.temperature=-1.0: use 0 or more",
        ),
        (["data.answers=mine"], "data.answers=mine: use given or original"),
        (
            ["data.answer_settings.vllm=true"],
            "data.answer_settings.vllm=True: use auto, none, or the path of an interpreter with "
            "vLLM",
        ),
        (
            ["data.answer_settings.vllm=gone"],
            "data.answer_settings.vllm=gone: no such interpreter",
        ),
        (
            [f"data.answer_settings.vllm={sys.executable}"],
            f"data.answer_settings.vllm={sys.executable} lacks vllm, which vllm needs: "
            f"{sys.executable} -m pip install vllm",
        ),
        (
            ["data.answer_settings.vllm=/bin/echo"],
            "data.answer_settings.vllm=/bin/echo: vllm failed: exit code 0",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(
    tmp_path: Path, given: list[str], message: str
) -> None:
    done = train(tmp_path / "run", *SHORT, "data.answers=original", *given)
    assert (done.code, done.refusal) == (1, f"error: {message}\n")


def test_plain_text_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps({"text": "some text"}) + "\n") * 40)
    given = ("data=jsonl", f"data.train={path}", "data.answers=original", "selector=first")
    done = train(tmp_path / "run", *SHORT, *given)
    assert (done.code, done.refusal) == (
        1,
        f"error: data.answers=original: {path} (training part) has text alone, which asks "
        "nothing: use data.answers=given, or rows with a question\n",
    )


def test_a_missing_engine_is_refused_before_layers_are_scored(tmp_path: Path) -> None:
    given = ("data.answers=original", "data.answer_settings.vllm=gone", "selector=greedy")
    cache = tmp_path / "cache"
    done = train(tmp_path / "run", *SHORT, *given, LAMINA_CACHE=str(cache))
    assert done.refusal == "error: data.answer_settings.vllm=gone: no such interpreter\n"
    assert not (cache / "scans").exists()


def test_vllm_is_refused_with_four_bits(tmp_path: Path) -> None:
    given = ("adapter=qlora", "data.answers=original", "data.answer_settings.vllm=python")
    done = train(tmp_path / "run", *SHORT, *given)
    assert done.code == 1
    assert (
        "data.answer_settings.vllm=python: with adapter=qlora the original answers from 4-bit "
        "weights, in transformers: use data.answer_settings.vllm=none\n"
    ) in done.errors
