"""How a command line is read: flags among the overrides, and ~ in paths."""

import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lamina.commands.app import expand_home
from lamina.config.library_fields import counterpart
from lamina.legacy.flag import take_old
from lamina.legacy.yaml_files import read_chain
from lamina.runtime.paths import load_environment
from tests.config.test_mistakes import experiment, finished
from tests.conftest import lamina, run, train


def test_flags_may_stand_between_overrides(tmp_path: Path) -> None:
    folder = experiment(tmp_path, "seed: 3")
    lines = {
        tmp_path / "show": [
            "experiment=mine",
            "--cfg",
            "job",
            "max_steps=7",
            "--config-dir",
            folder,
        ],
        tmp_path / "sweep": ["experiment=quickstart", "--multirun", "seed=1,2", "max_step=3"],
        tmp_path / "wrong": ["experiment=quickstart", "--multirunn", "seed=1"],
    }
    show, sweep, wrong = finished(lines)
    shown = OmegaConf.create(show.output.partition("\nheavy:")[0])
    assert (shown.seed, shown.max_steps) == (3, 7)
    assert sweep.refusal == "error: max_step=3: no such key; did you mean max_steps?\n"
    assert wrong.refusal == (
        "error: script.py: unrecognized arguments: --multirunn seed=1; see script.py --help\n"
    )


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("data.train=~/a.jsonl", "data.train=/home/me/a.jsonl"),
        ("model_name=~/a,~/b", "model_name=/home/me/a,/home/me/b"),
        ("hydra.searchpath=[file://~/conf]", "hydra.searchpath=[file:///home/me/conf]"),
        ("--config-dir=~/conf", "--config-dir=/home/me/conf"),
        ("~/old.yaml", "/home/me/old.yaml"),
        ("run_dir=~", "run_dir=/home/me"),
        ("~learning_rate", "~learning_rate"),
        ("data.train=a~/b", "data.train=a~/b"),
        ('data.train="a,~/b"', 'data.train="a,~/b"'),
        ("model_name=~other/a", "model_name=~other/a"),
    ],
)
def test_home_is_expanded_in_an_argument(
    monkeypatch: pytest.MonkeyPatch, given: str, read: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_home([given]) == [read]


PATHS = """
hydra: {run: {dir: ~/run}, sweep: {dir: ~/sweep}}
model_name: ~/model
output_dir: ~/checkpoints
trainer: {args: {deepspeed: ~/deepspeed.json}}
"""


def test_home_is_expanded_in_every_value(tmp_path: Path) -> None:
    given = ("--config-dir", experiment(tmp_path, PATHS), "--cfg", "all", "experiment=mine")
    rows = ("data=jsonl", "data.train=~/rows.jsonl", 'data.eval="~/eval,1.jsonl"')
    done = run("-m", "train", *given, *rows, cwd=tmp_path, HOME="/home/me")
    assert done.returncode == 0, done.stderr
    config = OmegaConf.create(done.stdout)
    assert config.model_name == "/home/me/model"
    assert config.output_dir == "/home/me/checkpoints"
    assert config.trainer.args.deepspeed == "/home/me/deepspeed.json"
    assert (config.data.train, config.data.eval) == (
        "/home/me/rows.jsonl",
        "/home/me/eval,1.jsonl",
    )
    assert (config.hydra.run.dir, config.hydra.sweep.dir) == ("/home/me/run", "/home/me/sweep")


def test_no_folder_is_called_tilde(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path / "home")}
    refused = ("experiment=quickstart", "model.keep_layers=99")
    done = train(Path("~/run"), *refused, cwd=tmp_path, **home)
    assert done.code == 1
    sweep = ("--multirun", 'hydra.sweep.dir="~/sweep"', *refused, "seed=1,2")
    assert train(Path("~/run"), *sweep, cwd=tmp_path, **home).code == 1
    (tmp_path / "home" / "old.yaml").write_text("model_type: original\n")
    migrated = lamina("migrate", "~/old.yaml", "--output=~/conf", cwd=tmp_path, **home)
    assert migrated.code == 0, migrated.errors
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")}
    assert found == {"home/run", "home/sweep", "home/old.yaml", "home/conf"}
    assert (tmp_path / "home" / "sweep" / "1" / "result.json").is_file()


def test_home_is_expanded_after_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("model_type: original\n")
    assert take_old(expand_home(["--old=~/mine.yaml", "seed=1"]), counterpart) == [
        "experiment=older/mine",
        "seed=1",
    ]


def test_home_is_expanded_in_files_of_variables_and_of_the_older_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HF_DATASETS_CACHE")
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("HF_DATASETS_CACHE=~/rows\n")
    load_environment()
    assert os.environ["HF_DATASETS_CACHE"] == str(tmp_path / "rows")
    (tmp_path / "base.yaml").write_text("model_type: original\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.yaml").write_text("_extends: ~/base.yaml\nseed: 3\n")
    read = [each.path for each in read_chain(tmp_path / "folder" / "mine.yaml")]
    assert read == [tmp_path / "folder" / "mine.yaml", tmp_path / "base.yaml"]


@pytest.mark.parametrize(
    ("words", "folder", "said"),
    [
        (
            ["python", "-m", "train", "data.train='a (1).jsonl'", "hydra.run.dir=old"],
            "runs/1",
            """python -m train 'data.train='"'"'a (1).jsonl'"'"'' hydra.run.dir=runs/1""",
        ),
        (["/env/bin/python", "/env/bin/lamina", "train"], "x", "lamina train hydra.run.dir=x"),
        (["python", "a b.py", "x=1"], "a b", """python 'a b.py' x=1 'hydra.run.dir="a b"'"""),
    ],
)
def test_the_command_that_continues_is_the_one_typed_with_its_folder(
    words: list[str], folder: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lamina.config import quoting

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quoting.sys, "orig_argv", words)
    monkeypatch.setattr(quoting.shutil, "which", {"lamina": "/env/bin/lamina"}.get)
    assert quoting.again("hydra.run.dir", tmp_path / folder) == said
