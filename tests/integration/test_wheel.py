"""The wheel, installed in another environment, does the main job from any folder."""

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from lamina import __version__
from tests.conftest import ROOT, SHORT, environment


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel of this checkout and this one's other packages.

    Somebody's repository tracks it.
    """
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)]
    subprocess.run([*pip, *build], check=True)
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    site = next((folder / "env").glob("lib/python*/site-packages"))
    # Lends the libraries but not this checkout: a .pth file in a lent folder is not read.
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = folder.glob("*.whl")
    subprocess.run(
        [*pip, "--python", str(python), "install", "--no-deps", "--ignore-installed", str(wheel)],
        check=True,
    )
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (
        ["init", "--quiet"],
        ["add", "--all"],
        ["commit", "--quiet", "--message", "all"],
    ):
        subprocess.run([*git, *command], check=True)
    return python


def test_the_wheel_runs_the_quickstart_from_any_folder(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(installed), "-m", "train", *SHORT, "max_steps=2"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "healed loss" in done.stdout
    (result,) = tmp_path.glob("outputs/*/*/result.json")
    assert str(installed.parents[1]) in result.read_text()
    assert str(ROOT) not in result.read_text()
    provenance = json.loads(result.read_text())["provenance"]
    assert provenance["git"] == {"sha": None, "dirty": None}
    assert provenance["versions"]["lamina"] == __version__


def test_the_wheel_brings_its_command(installed: Path, tmp_path: Path) -> None:
    command = str(installed.with_name("lamina"))
    done = subprocess.run(
        [command, "train", "--cfg", "job"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "model_name: Qwen/Qwen3-8B" in done.stdout


def test_the_wheel_migrates_a_config_of_the_older_form(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text("model_type: pruned\nkeep_layers: 5\n")

    def said(*command: str) -> str:
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=environment(), check=True
        ).stdout

    printed = said(str(installed.with_name("lamina")), "migrate", "lab.yaml").splitlines()[-1]
    assert printed == "python -m train --config-dir migrated experiment=lab"
    composed = said(str(installed), *printed.split()[1:], "--cfg", "job")
    assert "  keep_layers: 5\n" in composed
    assert said(str(installed), "-m", "train", "--old", "lab.yaml", "--cfg", "job") == composed
