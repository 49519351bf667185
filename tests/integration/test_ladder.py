"""A ladder: cut, heal, score again, cut again, as one run that resumes in any round."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from lamina.report.reading import read_report
from lamina.report.report_files import table
from lamina.weights.header import read_header
from tests.conftest import REFERENCE, SHORT, Finished, lamina, run, train

GIVEN = (
    *SHORT,
    f"model_name={REFERENCE}",
    "depth.keep_layers=5",
    "ladder.keep_layers=[8,5]",
    "depth.protect=[1]",
    "selector=leave_one_out",
    "scan.tokens=1k",
    "max_seq_length=96",
    "generator.train_rows=60",
    "generator.eval_rows=8",
    "max_steps=-1",
    "budget.tokens=4.4k",
    "eval_steps=30",
    "save_steps=30",
    "learning_rate=1e-3",
    "evaluation.num_samples=1",
)

METHODS = {"lora": ("adapter=lora",), "full": ("adapter=full", "trainer=distill")}
"""By adapter."""


@pytest.fixture(scope="module", params=METHODS)
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp(request.param)
    finished = train(folder / "run", *GIVEN, *METHODS[request.param])
    assert finished.code == 0, finished.errors
    return finished


def first_round(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "ladder" / "1" / "result.json").read_text())


def test_each_round_cuts_what_the_one_before_left(done: Finished) -> None:
    first, result = first_round(done.folder), done.result
    said = [line for line in done.errors.splitlines() if line.startswith("round ")]
    assert said == ["round 1 of 2: down to 8 layers", "round 2 of 2: down to 5 layers"]
    assert first["status"] == result["status"] == "completed"
    kept, before = result["kept_layers"], first["kept_layers"]
    assert (len(kept), len(before), result["num_layers"], first["num_layers"]) == (5, 8, 12, 12)
    if result["adapter"] == "full":  # the original teaches both rounds
        assert result["metrics"]["kl"] > 0 < first["metrics"]["kl"]
    assert 1 in kept  # which is protected, and the original's second layer
    assert set(kept) < set(before)
    for folder, count in ((done.folder / "ladder/1" / first["final"], 8), (done.final, 5)):
        names = read_header(folder / "model.safetensors")
        assert len({name.split(".")[2] for name in names if ".layers." in name}) == count
    note = json.loads((done.final / "lamina.json").read_text())
    assert (note["kept_layers"], note["num_layers"]) == (kept, 12)
    assert note["source_model"] == str(REFERENCE)
    assert note["export"]["form"] == "merged"
    assert note["healing"]["budget.tokens"] == "4.4k"
    assert "| ladder.keep_layers | [8,5] |" in (done.final / "README.md").read_text()


def test_the_rounds_share_one_budget(done: Finished) -> None:
    first, result = first_round(done.folder)["metrics"], done.result
    one, two = result["rounds"]
    assert [len(each["kept_layers"]) for each in (one, two)] == [8, 5]
    for each, whole in ((one, first), (two, result["metrics"])):
        assert each["eval_loss"] == whole["eval_loss"]
        assert each["reduced_eval_loss"] == whole["reduced_eval_loss"] > each["eval_loss"]
    most = 4400 * 0.02  # trained by one step
    assert 2200 <= one["trained_tokens"] == first["trained_tokens"] <= 2200 + most
    total = one["trained_tokens"] + two["trained_tokens"]
    assert 4400 <= total == result["metrics"]["trained_tokens"] <= 4400 + most
    for name in ("train_tokens", "train_seconds", "peak_memory_bytes"):
        assert result["metrics"][name] >= first[name] > 0
    assert sum(result["metrics"]["seconds"].values()) > sum(first["seconds"].values())


def test_each_round_has_its_own_warm_up_decay_and_order(done: Finished) -> None:
    rates = [
        [entry["learning_rate"] for entry in each["history"]]
        for each in (first_round(done.folder), done.result)
    ]
    for each in rates:
        assert max(each) == pytest.approx(1e-3, rel=0.2)
        assert each[0] < max(each) > 10 * each[-1]
    losses = [
        [entry["tokens"] for entry in each["history"][:5]]
        for each in (first_round(done.folder), done.result)
    ]
    assert losses[0] != losses[1]


def test_reports_and_the_closing_table_show_the_rounds(done: Finished) -> None:
    one, two = done.result["rounds"]
    shown = [
        f"{len(each['kept_layers'])} layers: {each['eval_loss']:.4g}, "
        f"{each['trained_tokens']:,} tokens"
        for each in (one, two)
    ]
    report = read_report([done.folder])
    assert [row.rounds for row in report.rows] == ["; ".join(shown)]
    assert "; ".join(shown) in table(report)
    lines = [line.split() for line in done.output.splitlines() if line.startswith("round ")]
    assert [line[:3] for line in lines] == [
        ["round", str(number), f"{each['eval_loss']:.4g}"]
        for number, each in enumerate((one, two), 1)
    ]


def test_an_adapter_is_no_export_of_a_ladder(done: Finished, tmp_path: Path) -> None:
    refused = lamina("export", done.folder, "--form", "adapter", "--output", "out", cwd=tmp_path)
    expected = f"error: --form adapter: {done.final} has no adapter; choose --form merged\n"
    if done.result["adapter"] == "lora":
        expected = (
            "error: --form adapter: with ladder.keep_layers=[8,5] its base is what the round "
            "before left, not the original; choose --form merged\n"
        )
    assert (refused.code, refused.refusal) == (1, expected)


KILLED = """
import os, sys

def hook(event, arguments):
    if event in ("open", "os.rename", "os.mkdir") and {name!r} in str(arguments[0]):
        writes = arguments[1] not in ("r", "rb", None) or (arguments[2] or 0) & 3
        if (writes or event != "open") and os.path.exists({after!r}):
            os.kill(os.getpid(), 9)

sys.addaudithook(hook)
from train import main; sys.argv[:1] = ["train"]; main()
"""
"""Kills a run at its first write to a path with a name, once another path exists."""


def tree(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if not {"logs", ".hydra"} & {*path.relative_to(folder).parts}
    )


def test_a_ladder_killed_in_any_round_resumes_as_if_undisturbed(
    done: Finished, tmp_path: Path
) -> None:
    folder, cache = tmp_path / "run", tmp_path / "cache"
    below = folder / "ladder" / "1" / "checkpoints" / "pruned"
    given = (f"hydra.run.dir={folder}", *GIVEN, *METHODS[done.result["adapter"]])
    kills = {
        "merging": (f"{below}/.final.partial/final/README.md", below),
        "scoring": (f"{cache}/scans", below / "final"),
        "round two": (f"{folder}/checkpoints/pruned/.checkpoint-60", folder / "checkpoints"),
    }
    for name, (path, after) in kills.items():
        code = KILLED.format(name=path, after=str(after))
        killed = run("-c", code, *given, cwd=tmp_path, LAMINA_CACHE=str(cache))
        assert killed.returncode == -signal.SIGKILL, f"{name}: {killed.stderr}"
        assert (below / "final").exists() == (name != "merging")
    resumed = train(folder, *given[1:], LAMINA_CACHE=str(cache))
    assert resumed.code == 0, resumed.errors
    assert resumed.result["resumed_from"] == f"{folder}/checkpoints/pruned/checkpoint-30"
    for one, other in (
        (first_round(folder), first_round(done.folder)),
        (resumed.result, done.result),
    ):
        assert one["history"] == other["history"]
        assert one["kept_layers"] == other["kept_layers"]
        for metric in ("eval_loss", "reduced_eval_loss", "trained_tokens"):
            assert one["metrics"][metric] == other["metrics"][metric]
    for each in (done.final, done.folder / "ladder/1/checkpoints/pruned/final"):
        again = folder / each.relative_to(done.folder) / "model.safetensors"
        assert again.read_bytes() == (each / "model.safetensors").read_bytes()
    assert tree(folder) == tree(done.folder)


def test_another_length_is_refused_before_a_round_goes_on(done: Finished) -> None:
    before = done.result
    refused = train(done.folder, *GIVEN, *METHODS[before["adapter"]], "budget.tokens=8.8k")
    checkpoints = done.folder / "ladder/1/checkpoints/pruned"
    *_, last = sorted(checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    assert refused.refusal == (
        "round 1 of 2: down to 8 layers\n"
        f"error: resume=auto, but {last} has budget.tokens=4.4k, not 8.8k: use another "
        "hydra.run.dir\n"
    )
    assert done.result == before


def test_clean_leaves_the_final_model_alone(done: Finished) -> None:
    rounds = done.folder / "ladder" / "1" / "checkpoints" / "pruned"
    assert (rounds / "final").is_dir()
    cleaned = lamina("clean", done.folder, "--yes", cwd=done.folder.parent)
    assert cleaned.code == 0, cleaned.errors
    assert " folders, " in cleaned.output.splitlines()[-1]
    assert not [*done.folder.rglob("checkpoint-*"), *rounds.glob("final")]
    assert (done.final / "model.safetensors").is_file()
    again = train(done.folder, *GIVEN, *METHODS[done.result["adapter"]])
    assert "is already complete" in again.errors


@pytest.mark.parametrize(("selector", "count"), [("leave_one_out", 1), ("first", 2)])
def test_a_dry_run_shows_the_rounds_that_are_known(
    selector: str, count: int, tmp_path: Path
) -> None:
    dry = train(tmp_path / "run", *GIVEN, f"selector={selector}", "dry_run=true")
    assert dry.code == 0, dry.errors
    content = json.loads((dry.folder / "dry_run.json").read_text())
    (second,) = content["rounds"]
    assert len(content["kept_layers"]) == 8
    assert second["layers"] == 5
    if selector == "first":
        assert set(second["kept_layers"]) < set(content["kept_layers"])
        assert "round 2: ■■■■■□□□□□□□  5 of 12 layers: " in dry.output
    else:
        assert second["kept_layers"] is None
        assert "round 2: 5 layers, chosen once round 1 has healed" in dry.output
    assert content["steps"] >= 100  # of both rounds
    footprint = content["footprint"]
    one = footprint["checkpoint"] * footprint["checkpoints"] + footprint["final"]
    assert footprint["disk"] == 2 * one
