"""The rules that make check applies to the code, and that they find what breaks them."""

from pathlib import Path

import pytest

from tests.rules import FOLDER_MODULES, MODULE_LINES, broken, target_comparisons


@pytest.mark.parametrize(
    "planted",
    [
        'config.model._target_ == "lamina.depth.variants.Scratch"',
        'if config.launcher._target_.endswith(".SlurmLauncher"): pass',
        'is_full = str(content["adapter"].get("_target_")).endswith("Full")',
        'at(content, "backend._target_") == name',
        'option = str(content["adapter"]["_target_"]).removeprefix("lamina.")',
        'target = node["_target_"]\nif target in KNOWN: pass',
        'match config._target_:\n    case "a": pass',
    ],
)
def test_a_comparison_of_a_target_is_found(planted: str) -> None:
    assert len(list(target_comparisons(planted))) == 1


@pytest.mark.parametrize(
    "allowed",
    [
        'config.backend = {"_target_": name}',
        'own = [key for key in node if key != "_target_"]',
        'target = node.get("_target_", MISSING)\nif target != MISSING: pass',
        "isinstance(run.model, Scratch)",
    ],
)
def test_what_only_writes_a_target_is_allowed(allowed: str) -> None:
    assert list(target_comparisons(allowed)) == []


def test_a_planted_case_of_each_rule_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "lamina" / "config"
    folder.mkdir(parents=True)
    for number in range(FOLDER_MODULES + 1):
        (folder / f"module{number}.py").touch()
    (folder / "module0.py").write_text("pass\n" * (MODULE_LINES + 1))
    (folder / "module1.py").write_text('ours = config._target_.startswith("lamina.")\n')
    (folder / "security.py").write_text('ours = config._target_.startswith("lamina.")\n')
    assert list(broken(tmp_path)) == [
        "lamina/config: 14 modules, at most 12",
        "lamina/config/module0.py: 401 lines, at most 400",
        "lamina/config/module1.py:1: compares a _target_: recognise the class with isinstance",
    ]


def test_this_code_keeps_the_rules() -> None:
    assert list(broken()) == []
