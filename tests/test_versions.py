"""The ranges in pyproject.toml admit both pinned sets: the tested one, and the newest."""

import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.conftest import ROOT


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(package): version for package, version in pairs}


@pytest.mark.parametrize(
    ("name", "extras"),
    [("constraints.txt", ("dev", "qlora")), ("constraints-newest.txt", ("dev",))],
)
def test_the_ranges_admit_a_pinned_set(name: str, extras: tuple[str, ...]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"]]
    for extra in extras:
        asked += project["optional-dependencies"][extra]
    pinned = pins(name)
    for each in map(Requirement, asked):
        assert each.specifier.contains(pinned[canonicalize_name(each.name)]), each


def test_the_newest_set_is_newer() -> None:
    tested, newest = pins("constraints.txt"), pins("constraints-newest.txt")
    for name in ("transformers", "trl", "datasets", "huggingface-hub"):
        assert Version(newest[name]) > Version(tested[name]), name


def test_a_trl_that_cannot_train_on_a_cpu_is_refused() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (trl,) = (each for each in map(Requirement, project["dependencies"]) if each.name == "trl")
    assert not trl.specifier.contains("1.15.0")
