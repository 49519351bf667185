"""What a run says while it works, in a pipe and on a terminal of 80 columns."""

import os
import pty
import re
import sys
import termios
from pathlib import Path

import pytest

from tests.conftest import REFERENCE, SHORT, Finished, run

QUICK = "experiment=quickstart"

TALKATIVE = """
from lamina.runtime import console as stages
stages.LATE_S, stages.LINE_S, stages.REFRESH_S = 0.0, 0.05, 0.002
from lamina.cli import main
main()
"""
"""The `lamina` command, with a line for each stage, however short, and one every 50 ms."""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("told") / "run"
    given = (
        "train",
        *SHORT,
        "generator.seed=17",
        "logger=both",
        "adapter=dora",
        f"hydra.run.dir={folder}",
    )
    done = run("-c", TALKATIVE, *given, cwd=folder.parent)
    return Finished(done.returncode, done.stdout, done.stderr, folder)


STAGES = {
    "the folder and the logs": r"run folder: run; logs: run/logs \(tensorboard, wandb\)",
    "what runs": r"runs: model_name=\S+, experiment=quickstart, model=pruned, adapter=dora, "
    "data=synthetic",
    "reading rows": r"reading rows: \d+ s",
    "tokenizing": r"tokenizing \S+.*: \d+ of 400 rows, \d+ s.*",
    "the baseline": r"evaluating \S+, untouched",
    "weights": r"reading weights: \d+ s",
    "rows evaluated": r"evaluating: \d+ of 60 rows, \d+ s( left)?",
    "samples": r"generating samples: \d of \d prompts, \d+ s( left)?",
    "loading": r"loading \S+, 8 of 12 layers",
    "a logger without a network": r"Weights & Biases is offline; to upload the run: wandb sync "
    r"run/wandb/offline-run-\S+",
    "training": r"keep-8-first-dora: \d of 6 steps, loss [\d.]+, [\d,]+ tokens/s, \d+ s left, .*",
    "evaluating in training": r"evaluating step [36]: \d of \d sequences, \d+ s( left)?",
    "a checkpoint": r"saving checkpoint-[36]: \d+ s",
    "final": r"saving final/: \d+ s",
    "reloading": r"evaluating \S+/final",
}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_its_line_in_a_pipe_and_in_the_log(stage: str, told: Finished) -> None:
    assert told.code == 0, told.errors
    lines = told.errors.splitlines()
    assert any(re.fullmatch(STAGES[stage], line) for line in lines), told.errors
    logged = (told.folder / "train.log").read_text().splitlines()
    texts = [line.partition("[INFO] ")[2] for line in logged]
    assert any(re.fullmatch(STAGES[stage], text) for text in texts)


def test_a_scan_has_a_line_for_its_layers_and_one_for_its_predictions(tmp_path: Path) -> None:
    given = ("scan", QUICK, "scan.tokens=3k", "hydra.run.dir=run")
    done = run("-c", TALKATIVE, *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line in (
        r"preparing the scan: \d+ s",
        r"scoring layers: \d+ of 78 forward passes, layer \d+ of 12, \d+ s( left)?",
        r"scoring predictions: \d of \d windows, \d+ s( left)?",
    ):
        assert re.search(f"^{line}$", done.stderr, re.M), done.stderr


def test_a_pipe_and_a_log_have_no_bars(told: Finished) -> None:
    for text in (told.errors, (told.folder / "train.log").read_text()):
        assert not re.search(r"[\r\x1b]|it/s|\[#|%\|", text)


SHOWN = """
import time
from lamina.runtime import console as stages
stages.REFRESH_S = 0.01
with stages.stage("drop-16-of-a-model-with-a-long-name-lora", 200, "steps", first=100) as shown:
    shown.notes, shown.extras = ("loss 2.3112", "12,345 tokens/s"), ("lr 1.0e-04", "mem 1.2 GB")
    shown.advance(20)
    time.sleep(0.2)
    with stages.stage("evaluating step 120", 60, "sequences"):
        time.sleep(0.2)
"""


def test_a_terminal_of_80_columns_shows_step_loss_speed_and_time_left(tmp_path: Path) -> None:
    own, other = pty.openpty()
    termios.tcsetwinsize(other, (24, 80))
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", SHOWN],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, other, 2)],
    )
    os.close(other)
    text = b""
    try:
        while piece := os.read(own, 65536):
            text += piece
    except OSError:  # Linux reports a closed terminal as an error
        pass
    os.close(own)
    assert os.waitpid(pid, 0)[1] == 0
    first, *_, last, end = text.decode().split("\r\x1b[K")[1:]
    line = "[######....] drop-16-: 120 of 200 steps, loss 2.3112, 12,345 tokens/s, 0 s left"
    assert (first, len(line)) == (line, 79)
    assert last == "[..........] evaluating step 120: 0 of 60 sequences, 0 s"
    assert end == ""


FIRST_OUTPUT = """
import io, os, sys

class First(io.StringIO):
    def write(self, text):
        if text.strip():
            os.write(1, text.encode())
            os._exit(3 * bool({"torch", "transformers", "trl"} & {*sys.modules}))

sys.stdout = sys.stderr = First()
sys.argv[0] = "lamina"
from lamina.runtime import console
console.LATE_S = float("inf")
from lamina.cli import main
main()
"""
"""The `lamina` command up to its first output, however long that takes; 3 if after an import."""

CUT = f"model_name={REFERENCE} model=dropped model.layer_to_drop=2"
OLD = "model_type: original\n"

COMMANDS = {
    "train": (f"train {QUICK} hydra.run.dir=run", r"run folder: run; logs: .*"),
    "a sweep": (
        f"train {QUICK} --multirun model=dropped model.layer_to_drop=1,2 hydra.sweep.dir=sweep",
        r"sweep folder: sweep, 2 jobs",
    ),
    "a dry run": (f"train {QUICK} dry_run=true hydra.run.dir=run", r"run folder: run; logs: .*"),
    "scan": (f"scan {QUICK} hydra.run.dir=run", r"run folder: run"),
    "shortlist": (f"shortlist {QUICK} hydra.run.dir=run", r"run folder: run"),
    "cut": (f"cut {CUT} output=out", rf"cutting {REFERENCE} into out"),
    "export": ("export RUN --output out", r"exporting RUN into out, merged"),
    "verify": ("verify RUN --engine transformers", r"verifying RUN in transformers"),
    "show": (f"show {REFERENCE}", r"scratch: 12 of 12 layers, .*"),
    "init": ("init mine max_steps=5", r"experiment/mine\.yaml"),
    "migrate": ("migrate old.yaml", r"migrated/experiment/old\.yaml: from old\.yaml"),
    "clean": ("clean RUN", r".*checkpoint-\d+"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_first_line_of_every_command_comes_before_slow_imports(
    name: str, pruned: Finished, tmp_path: Path
) -> None:
    (tmp_path / "RUN").symlink_to(pruned.folder)
    (tmp_path / "old.yaml").write_text(OLD)
    command, first = COMMANDS[name]
    done = run("-c", FIRST_OUTPUT, *command.split(), cwd=tmp_path, imports="command")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(first, done.stdout.splitlines()[0])


def test_output_without_buffers_stays_so(tmp_path: Path) -> None:
    code = (
        "import sys; from lamina.runtime.console import prepare_console; prepare_console(); "
        "print(sys.stdout.write_through, sys.stderr.write_through)"
    )
    done = run("-c", code, cwd=tmp_path, PYTHONUNBUFFERED="1")
    assert (done.stdout, done.stderr) == ("True True\n", "")
