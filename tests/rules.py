"""The rules of the code that no linter knows: `make check` runs this file."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

SRC = Path(__file__).parents[1] / "src"
MODULE_LINES = 400
FOLDER_MODULES = 12
ANY_NUMBER = ("commands",)
"""Folders with one module for each of something."""

MAY_COMPARE = (Path("lamina/config/security.py"), Path("lamina/config/binding.py"))
"""The modules that read targets as text: they decide which of them are allowed."""

TARGET = "_target_"
TEXT_METHODS = ("startswith", "endswith", "removeprefix", "removesuffix", "partition", "rpartition")


def broken(src: Path = SRC) -> Iterator[str]:
    """Name each place below a source folder that breaks a rule."""
    modules = sorted(src.rglob("*.py"))
    for folder in sorted({path.parent for path in modules}):
        names = [path for path in modules if path.parent == folder and path.stem != "__init__"]
        if len(names) > FOLDER_MODULES and folder.name not in ANY_NUMBER:
            yield f"{folder.relative_to(src)}: {len(names)} modules, at most {FOLDER_MODULES}"
    for path in modules:
        name, text = path.relative_to(src), path.read_text(encoding="utf-8")
        if (lines := len(text.splitlines())) > MODULE_LINES:
            yield f"{name}: {lines} lines, at most {MODULE_LINES}"
        if name not in MAY_COMPARE:
            for line in target_comparisons(text):
                yield f"{name}:{line}: compares a {TARGET}: recognise the class with isinstance"


def target_comparisons(source: str) -> Iterator[int]:
    """Return the lines in which a target is compared as text.

    A target is `config._target_`, `config["_target_"]`, `config.get("_target_")`, or a name that
    one of these was assigned to.
    """
    tree = ast.parse(source)
    names = {TARGET}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if _reads_target(node.value, {TARGET}):
                names |= {each.id for each in targets if isinstance(each, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
            # A key, or the mark of a value that is not given, is not a class.
            if any(_is_key(part) for part in parts) or any(map(_is_missing, parts)):
                continue
            if any(_reads_target(part, names) for part in parts):
                yield node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in TEXT_METHODS and _reads_target(node.func.value, names):
                yield node.lineno
        elif isinstance(node, ast.Match) and _reads_target(node.subject, names):
            yield node.lineno


def _reads_target(node: ast.AST, names: set[str]) -> bool:
    return any(
        (isinstance(each, ast.Attribute) and each.attr == TARGET)
        or (isinstance(each, ast.Constant) and str(each.value).rpartition(".")[2] == TARGET)
        or (isinstance(each, ast.Name) and each.id in names)
        for each in ast.walk(node)
    )


def _is_key(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value == TARGET


def _is_missing(node: ast.AST) -> bool:
    is_mark = isinstance(node, ast.Constant) and node.value in ("???", None)
    return is_mark or (isinstance(node, ast.Name) and node.id == "MISSING")


if __name__ == "__main__":
    found = list(broken())
    sys.stderr.writelines(f"{each}\n" for each in found)
    sys.exit(bool(found))
