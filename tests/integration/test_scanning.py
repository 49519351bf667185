"""lamina scan, selectors in runs and lamina shortlist: the real commands."""

import csv
import json
import time
from pathlib import Path

import pytest

from tests.conftest import REFERENCE, SHORT, Finished, lamina, start, train

SCAN = ("experiment=quickstart", "generator.train_rows=200", "max_seq_length=128", "scan.tokens=1k")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def scanned(cache: str, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("scan")
    done = lamina("scan", *SCAN, "hydra.run.dir=run", cwd=folder, LAMINA_CACHE=cache, COLUMNS="120")
    assert done.code == 0, done.errors
    return Finished(done.code, done.output, done.errors, folder / "run")


def content(folder: Path) -> dict[str, object]:
    return json.loads((folder / "scan.json").read_text())


def test_a_scan_writes_its_numbers_its_table_and_its_picture(scanned: Finished) -> None:
    found = content(scanned.folder)
    assert found["num_layers"] == 12
    assert found["num_windows"] == 7
    assert found["layer_forwards"] == 78
    assert len(found["leave_one_out"]["loss"]) == len(found["block_influence"]) == 12
    assert [len(row) for row in found["angular_distance"]] == list(range(13, 1, -1))
    assert found["provenance"]["dtype"] == "float32"
    assert {"seconds", "head_seconds", "peak_memory_bytes", "passes"} <= found.keys()
    rows = list(csv.DictReader((scanned.folder / "scan.csv").open()))
    assert [float(row["loss"]) for row in rows] == found["leave_one_out"]["loss"]
    assert (scanned.folder / "scan.png").read_bytes().startswith(b"\x89PNG")
    assert "cheapest" in scanned.output
    assert ", in float32" in scanned.output  # the quickstart sets bf16=false
    # This model depends most on its first layers.
    losses = found["leave_one_out"]["loss"]
    assert min(losses[:2]) > max(losses[2:])


def test_a_second_scan_is_read_from_the_cache(
    scanned: Finished, cache: str, tmp_path: Path
) -> None:
    done = lamina("scan", *SCAN, "hydra.run.dir=run", cwd=tmp_path, LAMINA_CACHE=cache)
    assert done.code == 0, done.errors
    assert "scoring the layers" not in done.errors
    assert content(tmp_path / "run") == content(scanned.folder)


def test_streamed_numbers_are_the_held_ones(scanned: Finished, tmp_path: Path) -> None:
    given = (*SCAN, "scan.stream=true", "hydra.run.dir=run")
    done = lamina("scan", *given, cwd=tmp_path, LAMINA_CACHE=str(tmp_path / "cache"))
    assert done.code == 0, done.errors
    streamed, held = content(tmp_path / "run"), content(scanned.folder)
    for key in ("baseline_loss", "leave_one_out", "block_influence", "angular_distance"):
        assert streamed[key] == held[key]


def test_a_killed_scan_resumes(scanned: Finished, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    code = (
        "import sys, lamina.scan.passes as s; s.SAVE_SECONDS, s.SAVE_SHARE = 0.0, 1e9;"
        "advance = s.Streams.advance\n"
        "def slow(self, index, block, tick):\n"
        "    import time; time.sleep(0.5); advance(self, index, block, tick)\n"
        "s.Streams.advance = slow\n"
        "from lamina.cli import main; sys.argv[:1] = ['lamina', 'scan']; main()"
    )
    with start("-c", code, *SCAN, cwd=tmp_path, LAMINA_CACHE=str(cache)) as started:
        deadline = time.monotonic() + 120
        while not list(cache.glob("scans/*/scan-state.safetensors")):
            assert time.monotonic() < deadline
            assert started.poll() is None
            time.sleep(0.05)
        started.kill()
    assert not list(cache.glob("scans/*/scan.json"))
    done = lamina("scan", *SCAN, "hydra.run.dir=run", cwd=tmp_path, LAMINA_CACHE=str(cache))
    assert done.code == 0, done.errors
    assert content(tmp_path / "run")["leave_one_out"] == content(scanned.folder)["leave_one_out"]


def test_a_sweep_over_selectors_scans_once_and_ends_in_a_table(tmp_path: Path) -> None:
    given = ("model=pruned", "model.keep_layers=8", "selector=first,block_influence,greedy")
    done = train(
        tmp_path / "unused",
        "--multirun",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
        *SHORT,
        *given,
        "scan.tokens=1k",
        "scan.memory=1GB",
        LAMINA_CACHE=str(tmp_path / "cache"),
        COLUMNS="120",
    )
    assert done.code == 0, done.errors
    assert done.errors.count("scoring the layers of") == 1
    kept = [json.loads((tmp_path / "sweep" / n / "result.json").read_text()) for n in "012"]
    assert kept[0]["kept_layers"] == list(range(8))
    assert all(len(result["kept_layers"]) == 8 for result in kept)
    assert all({0, 1} <= set(result["kept_layers"]) for result in kept)
    *table, legend, page = done.output.splitlines()[-5:]
    assert sorted(line.lstrip("*~ ").split()[0] for line in table) == [
        "keep-8-block_influence-lora",
        "keep-8-first-lora",
        "keep-8-greedy-lora",
    ]
    assert table[0].startswith("* ")
    assert legend == "* lowest healed loss; ~ within noise of it (paired 95 % interval)"
    assert page == "sweep/report.html"
    note = json.loads((tmp_path / "sweep/2" / kept[2]["final"] / "lamina.json").read_text())
    assert note["selector"] == {"keep_layers": 8, "selector": {"name": "Greedy"}}


def test_a_shortlist_heals_the_cheapest_layers_that_are_not_protected(tmp_path: Path) -> None:
    """With an experiment of one's own, in a folder whose train.py is not Lamina's."""
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    own = "# @package _global_\ndefaults: [quickstart]\n"
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(own)
    (tmp_path / "train.py").write_text("raise SystemExit('another train.py ran')")
    given = ("--config-dir=conf", "experiment=mine", *SHORT[1:], "scan.tokens=1k")
    given = (*given, "scan.candidates=2", "depth.protect=[9]", "hydra.run.dir=run")
    done = lamina(
        "shortlist", *given, cwd=tmp_path, LAMINA_CACHE=str(tmp_path / "cache"), COLUMNS="120"
    )
    assert done.code == 0, done.errors
    losses = content(tmp_path / "run")["leave_one_out"]["loss"]
    assert min(range(12), key=lambda layer: losses[layer]) in (8, 9)
    cheapest = sorted({*range(12)} - {9}, key=lambda layer: losses[layer])[:2]
    jobs = [json.loads((tmp_path / f"run/healing/{n}/result.json").read_text()) for n in "01"]
    for job, layer in zip(jobs, cheapest, strict=True):
        assert job["kept_layers"] == [index for index in range(12) if index != layer]
    assert [line.split()[0] for line in done.output.splitlines()[-2:]] == list(map(str, cheapest))
    reported = lamina("report", "run", "--output", "out", cwd=tmp_path)
    assert (reported.code, reported.refusal) == (0, "")
    lines = (tmp_path / "out" / "report.md").read_text().splitlines()
    (scan,) = (line for line in lines if "/run | 12 layers, " in line)
    assert scan.split(" | ")[2] == str(min(range(12), key=lambda layer: losses[layer]))
    assert sum("| 11 of 12 |" in line for line in lines) == 2


def test_a_shortlist_without_a_layer_to_drop_is_refused(tmp_path: Path) -> None:
    given = (*SCAN, "model=original", "depth.protect=full_attention")
    done = lamina("shortlist", *given, cwd=tmp_path)
    assert done.code == 1
    assert done.errors.splitlines()[-1].endswith(
        "depth.protect=full_attention protects 12: keep at least those, or protect fewer"
    )
    assert "scoring the layers" not in done.errors


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("experiment=mine", "keep_layers"),
        ("experiment=quickstart ladder.keep_layers=[9,8]", "ladder.keep_layers=[9,8] needs model="),
        ("experiment=quickstart selector=last", "selector chooses the layers of model=pruned"),
    ],
)
def test_a_shortlist_whose_healing_is_refused_scans_nothing(
    given: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "experiment").mkdir()
    own = "# @package _global_\ndefaults: [quickstart]\nmodel: {keep_layers: 9}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(own)
    done = lamina("shortlist", "--config-dir=.", *given.split(), "scan.tokens=1k", cwd=tmp_path)
    assert done.code == 1
    assert message in done.errors
    assert "Traceback" not in done.errors
    assert "scoring the layers" not in done.errors


def test_a_shortlist_may_repair_and_says_why_its_healing_failed(tmp_path: Path) -> None:
    """Without model=: the default keeps all layers, and the healing drops one."""
    given = (f"model_name={REFERENCE}", "data=synthetic", "generator.train_rows=60", "logger=none")
    short = ("max_seq_length=128", "max_steps=1", "scan.tokens=1k", "scan.candidates=1")
    (tmp_path / "healing").write_text("a file in the way")
    more = ("repair=closed_form", "hydra.run.dir=.")
    done = lamina("shortlist", *given, *short, *more, cwd=tmp_path)
    assert done.code == 1
    assert (tmp_path / "scan.json").is_file()
    assert "Traceback" not in done.errors
    assert done.errors.splitlines()[-1].endswith("failed; see above")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("max_seq_length=2048", "scan.tokens=1k"), "scan.tokens=1000 is less than one window"),
        (("scan.memory=1MB",), "scan.memory=1MB is too small"),
        (("scan.memory=lots",), "scan.memory=lots: use a number such as 500MB, 8GB or 8GiB"),
        (("scan.tokens=1z",), "scan.tokens=1z: use a number such as 4096, 16k or 1.6M"),
        (("scan.rows=mixed",), "scan.rows=mixed: use joined or apart"),
        (("scan.sets=0",), "scan.sets=0: use 1 or more"),
        (("model=dropped", "selector=last"), "selector chooses the layers of model=pruned"),
        (("selector=angular", "selector.token=first"), "selector.token=first: use last or mean"),
    ],
)
def test_bad_input_is_reported_in_one_line(
    given: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    done = lamina("scan", *SCAN, *given, cwd=tmp_path, LAMINA_CACHE=str(tmp_path / "cache"))
    assert done.code == 1
    lines = [line for line in done.errors.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in done.errors


def test_a_cut_cannot_score_layers(tmp_path: Path) -> None:
    given = ("model=pruned", "model.keep_layers=8", "selector=greedy", "output=out")
    done = lamina("cut", "model_name=${asset:reference}", *given, cwd=tmp_path)
    assert done.code == 1
    assert "lamina cut has no text to score layers on" in done.errors
