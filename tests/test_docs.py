"""The README and docs/: their commands compose, their links resolve, their paths exist."""

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from lamina.cli import COMMANDS
from lamina.config.preflight import preflight
from lamina.config.schema import register
from lamina.runtime.paths import conf_dir
from tests.conftest import ROOT
from tools import families_list

PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
MARKS = ("# needs ", "# not run: ")
"""First line of a block whose commands need a GPU, a network, SLURM, or values of the reader."""

COMPOSED = {
    **dict.fromkeys(("train", "scan", "shortlist"), "config"), "evaluate": "evaluate", "cut": "cut",
}  # fmt: skip
"""Primary config of each command that Hydra composes."""

INLINE = re.compile(r"`((?:python|lamina|make) [^`]+)`")


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.M | re.S)


def commands(page: Path) -> Iterator[list[str]]:
    """Give each command of the fenced blocks and of the running text as arguments."""
    lines = [line for block in blocks(page) for line in block.replace("\\\n", " ").splitlines()]
    inline = [" ".join(found.split()) for found in INLINE.findall(page.read_text())]
    for line in (*lines, *inline):
        arguments = shlex.split(line, comments=True)
        while arguments and re.fullmatch(r"[A-Z_]+=\S*", arguments[0]):
            del arguments[0]  # variables of the environment
        if arguments:
            yield arguments


ALL = sorted({tuple(command) for page in PAGES for command in commands(page)})


@pytest.fixture(scope="module", autouse=True)
def _hydra() -> object:
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield


def composed(name: str, overrides: list[str]) -> Any:
    """Compose the first job of a command line."""
    loader = GlobalHydra.instance().config_loader()  # expands a glob over a group's options
    parsed = OverridesParser.create(loader).parse_overrides(overrides)
    first = [
        f"{each.get_key_element()}={next(each.sweep_string_iterator())}"
        if each.is_sweep_override()
        else each.input_line
        for each in parsed
    ]
    output = [] if name == "cut" else ["hydra.runtime.output_dir=run"]
    config = compose(name, [*output, *first], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    content = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    OmegaConf.set_struct(content, True)
    return content


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_every_command_exists_and_its_settings_compose(command: tuple[str, ...]) -> None:
    tool, *rest = command
    if tool == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert all(f"\n{target}:" in makefile for target in rest if "=" not in target)
    elif rest[:1] and rest[0].startswith(("benchmarks/", "tools/")):
        script = (ROOT / rest[0]).read_text()
        flags = [each for each in rest if each.startswith("--")]
        shared = (ROOT / "benchmarks" / "harness" / "figures.py").read_text()
        assert all(flag in script + shared for flag in flags)
    elif tool == "lamina" or rest[:2] == ["-m", "train"]:
        name = rest[0] if tool == "lamina" else "train"
        given = rest[1:] if tool == "lamina" else rest[2:]
        assert name in COMMANDS
        if name not in COMPOSED:
            source = (ROOT / "src" / "lamina" / "commands" / f"{name}.py").read_text()
            assert all(f'"{flag}"' in source for flag in given if flag.startswith("--"))
        overrides = [each for each in given if "=" in each and not each.startswith("--")]
        if name in COMPOSED and overrides and "--old" not in given:
            config = composed(COMPOSED[name], overrides)
            if "experiment=quickstart" in given:
                preflight(config)
    else:
        assert tool == "pip", command


def test_a_command_that_is_not_runnable_is_marked() -> None:
    """A quickstart runs anywhere; others need a GPU, a network or the reader's own values."""
    for page in PAGES:
        for block in blocks(page):
            anywhere = ("experiment=", "make ", "benchmarks/", "pip ", "assets/")
            lines = block.replace("\\\n", " ").splitlines()
            runnable = all(any(sign in line for sign in anywhere) for line in lines)
            assert block.startswith(MARKS) or runnable, f"{page.name}: {block}"


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_resolves(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_named_path_exists(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for path in re.findall(r"`((?:src|tests|conf|benchmarks|docs|tools)/[\w./*-]*)`", text):
        made = path.startswith("benchmarks/results/")
        assert made or list(ROOT.glob(path.rstrip("/"))), path


def test_every_page_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in PAGES[3:] if f"(docs/{page.name})" not in readme] == []


def test_the_readme_has_at_most_150_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_parameters_page_is_fresh_and_complete() -> None:
    script = ROOT / "tools" / "parameters_page.py"
    done = subprocess.run([sys.executable, script, "--check"], check=False)
    assert done.returncode == 0
    text = (ROOT / "docs" / "parameters.md").read_text()
    groups = {"model", "adapter", "backend", "data", "trainer", "evaluation", "logger", "callbacks"}
    keys = {key for key in composed("config", []) if not key.startswith("_")} - groups
    named = {key for key in keys if f"`{key}" in text or f"### {key}\n" in text}
    assert named == keys


def test_the_architecture_lists_the_import_order_that_is_enforced() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = [re.split(r" [:|] ", line) for line in contract["contracts"][0]["layers"]]
    enforced = [{name.removeprefix("lamina.") for name in line} for line in layers]
    page = (ROOT / "docs" / "architecture.md").read_text()
    listed = re.findall(r"^    ([a-z][a-z_, ]*?)  +\S", page.partition("## Packages")[2], re.M)
    assert [set(line.split(", ")) for line in listed] == enforced


def test_the_list_of_families_is_the_tested_one() -> None:
    assert (ROOT / "docs" / "layers.md").read_text() == families_list.page()
