"""`--help` of every command: what it does, five usual calls, and keys that exist."""

import re
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lamina.cli import COMMANDS
from lamina.config.schema import register
from lamina.runtime.paths import conf_dir
from tests.conftest import environment, lamina
from tests.forked import fresh

HYDRA = {
    **dict.fromkeys(("train", "scan", "shortlist"), "config"), "evaluate": "evaluate", "cut": "cut",
}  # fmt: skip
"""Commands of a composed config, and its name."""

GROUPS = {"config": ("model", "data", "adapter"), "evaluate": ("data",), "cut": ("model",)}
"""Groups whose options have keys of their own, by config."""

NO_KEYS = {"hydra.run.dir", "hydra/launcher"}


@cache
def known(config_name: str) -> set[str]:
    """Every key of a config under any option of its groups."""
    register()
    found: set[str] = set()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for group in GROUPS[config_name]:
            for option in sorted(path.stem for path in (conf_dir() / group).glob("*.yaml")):
                config = compose(config_name, [f"{group}={option}"])
                found |= set(_dotted(OmegaConf.to_container(config, resolve=False)))
    return found


def _dotted(node: dict[str, object], above: str = "") -> list[str]:
    keys = []
    for name, value in node.items():
        keys.append(f"{above}{name}")
        if isinstance(value, dict):
            keys += _dotted(value, f"{above}{name}.")
    return keys


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_five_usual_calls_and_is_short(command: str, tmp_path: Path) -> None:
    done = lamina(command, "--help", cwd=tmp_path)
    assert (done.code, done.errors) == (0, "")
    lines = done.output.splitlines()
    assert lines[0].startswith("usage: ")
    at = lines.index("usual calls:")
    assert all(line.startswith("  ") for line in lines[at + 1 : at + 6])
    assert "".join(lines[at + 6 : at + 7]) == ""
    assert len(lines) < 70
    assert max(map(len, lines)) <= 100
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", HYDRA)
def test_keys_in_help_exist(command: str) -> None:
    text = import_module(f"lamina.commands.{command}").HELP
    keys = text.partition("\nkeys, all described in docs/parameters.md:\n")[2].partition("\n\n")[0]
    named = set(
        re.findall(
            r"(?<![\w/=|])[a-z]+[a-z_]*(?:[./][a-z_]+)+|(?<!\|)\b[a-z]+_[a-z_]+\b(?![=|])", keys
        )
    )
    options = {path.stem for path in conf_dir().glob("*/*.yaml")} | NO_KEYS
    assert named - known(HYDRA[command]) - options == set()
    assert len(named) > 1


def test_the_help_of_training_has_every_shared_parameter() -> None:
    text = import_module("lamina.commands.train").HELP
    shared = yaml.safe_load((conf_dir() / "base.yaml").read_text())
    missing = {key for key in shared if not re.search(rf"\b{key}\b", text)} - {"defaults"}
    assert missing == set()


def test_help_imports_no_torch(tmp_path: Path) -> None:
    code = "import sys\nfrom lamina.cli import main\nmain()\nassert 'torch' not in sys.modules"
    for command in COMMANDS:
        given = ["-c", code, command, "--help"]
        with fresh(given, cwd=tmp_path, env=environment()) as process:
            done = process.completed(60)
        assert done.stderr == "" or "SystemExit" in done.stderr, command
