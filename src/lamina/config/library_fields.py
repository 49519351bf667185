"""Fields of TRL's and PEFT's settings classes, read from their sources: nothing is imported.

Importing SFTConfig takes seconds, reading the source of it and its bases a twentieth of one.
"""

import ast
import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lamina.errors import nearest

CLASSES = {
    "SFTConfig": (
        ("transformers", "training_args.py", "TrainingArguments"),
        ("trl", "trainer/base_config.py", "_BaseConfig"),
        ("trl", "trainer/sft_config.py", "SFTConfig"),
    ),
    "LoraConfig": (
        ("peft", "config.py", "PeftConfigMixin"),
        ("peft", "config.py", "PeftConfig"),
        ("peft", "tuners/lora/config.py", "LoraConfig"),
    ),
}
"""Package, file and class of each settings class and its bases, the base first."""

ENUMS = ("training_args.py", "trainer_utils.py", "debug_utils.py")
"""Files of transformers with the enumerations that TrainingArguments speaks of."""

PLAIN: dict[str, tuple[tuple[str, ...], tuple[type, ...]]] = {
    "int": (("a whole number",), (int,)),
    "float": (("a number",), (int, float)),
    "bool": (("true", "false"), (bool,)),
    "str": (("a text",), (str,)),
    "list": (("a list",), (list,)),
    "dict": (("a mapping",), (dict,)),
}
"""What people call a type, and the types of its values."""

FEW = 12
"""Choices that an error lists; of more it names the nearest."""


@dataclass(frozen=True)
class LibraryField:
    """One field of a settings class."""

    annotation: ast.expr
    """Its type, as it stands in the source."""

    choices: tuple[Any, ...]
    """Its only values, where the source lists them."""

    def refusal(self, value: Any) -> str | None:
        """Say what the field takes, if it does not take a value."""
        kinds = list(_kinds(self.annotation))
        if self.choices:
            plain = (kind for kind in kinds if kind.plain != "str")
            kinds = [_Kind(values=self.choices), *plain]
        if any(kind.takes(value) for kind in kinds):
            return None
        named = dict.fromkeys(name for kind in kinds for name in kind.names)
        if len(named) > FEW:
            return f"not one of its {len(named)} choices{nearest(str(value), map(str, named))}"
        listed = any(value is not None for kind in kinds for value in kind.values)
        return f"{'give' if listed else 'expected'} {either(list(named))}"


@cache
def fields_of(name: str) -> dict[str, LibraryField]:
    """Return the fields of a class of CLASSES, those of its bases among them."""
    found: dict[str, LibraryField] = {}
    for package, file, class_name in CLASSES[name]:
        for node in _classes(package, file)[class_name].body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found[node.target.id] = LibraryField(node.annotation, _choices(node))
    return found


def either(names: Sequence[Any]) -> str:
    """Join names into 'a, b or c'."""
    texts = [_written(name) for name in names]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


@dataclass(frozen=True)
class _Kind:
    """One alternative of an annotation."""

    plain: str = ""
    """A key of PLAIN, or nothing for one that takes everything."""

    values: tuple[Any, ...] = ()
    """The only values."""

    items: tuple["_Kind", ...] = ()
    """Of a list: what its items may be."""

    keys: tuple[str, ...] = ()
    """Of a mapping: the only keys."""

    @property
    def names(self) -> tuple[Any, ...]:
        """What messages call the values of this kind."""
        if self.keys:
            return (f"a mapping with the keys {'/'.join(self.keys)}",)
        if self.items:
            inside = either([name for kind in self.items for name in kind.names])
            return (f"a list (each item {inside})",)
        return self.values or (PLAIN[self.plain][0] if self.plain else ())

    def takes(self, value: Any) -> bool:
        """Whether a value is one of this kind."""
        if self.values:
            return any(_is(value, each) for each in self.values)
        if not self.plain:
            return True
        if type(value) not in PLAIN[self.plain][1]:
            return False
        if self.keys:
            return value.keys() <= {*self.keys}
        return not self.items or all(any(k.takes(item) for k in self.items) for item in value)


def _kinds(annotation: ast.expr) -> Iterator[_Kind]:
    """The alternatives of an annotation; an enumeration's str is one of its values."""
    parts = list(_parts(annotation))
    listed = [part for part in parts if isinstance(part, ast.Name) and _enumeration(part.id)]
    for part in parts:
        if isinstance(part, ast.Name) and part.id == "str" and listed:
            continue
        yield from _kind(part)


def _parts(annotation: ast.expr) -> Iterator[ast.expr]:
    """The members of a union, however it is written."""
    if isinstance(annotation, ast.BinOp):
        yield from _parts(annotation.left)
        yield from _parts(annotation.right)
    elif isinstance(annotation, ast.Subscript) and _name(annotation) in ("Optional", "Union"):
        inside = annotation.slice
        for part in inside.elts if isinstance(inside, ast.Tuple) else (inside,):
            yield from _parts(part)
        if _name(annotation) == "Optional":
            yield ast.Constant(None)
    else:
        yield annotation


def _kind(part: ast.expr) -> Iterator[_Kind]:
    name = _name(part)
    if isinstance(part, ast.Constant):
        yield _Kind(values=(part.value,))
    elif name == "Literal":
        assert isinstance(part, ast.Subscript)
        yield _Kind(values=tuple(_values(part.slice)))
    elif name.lower() in PLAIN:
        items = tuple(_kinds(part.slice)) if isinstance(part, ast.Subscript) else ()
        yield _Kind(plain=name.lower(), items=items if name.lower() == "list" else ())
    elif values := _enumeration(name):
        yield _Kind(values=values)
    elif name.endswith("Config"):
        yield _Kind(plain="dict", keys=_nested(name))
    else:
        yield _Kind()


def _name(annotation: ast.expr) -> str:
    if isinstance(annotation, ast.Subscript):
        annotation = annotation.value
    return annotation.id if isinstance(annotation, ast.Name) else ""


def _values(inside: ast.expr) -> Iterator[Any]:
    for item in inside.elts if isinstance(inside, (ast.List, ast.Tuple)) else (inside,):
        if isinstance(item, ast.Constant):
            yield item.value


def _is(value: Any, choice: Any) -> bool:
    """Whether a value is a choice; a choice such as `pissa_niter_[number]` stands for many."""
    if isinstance(choice, str) and "[" in choice and isinstance(value, str):
        return bool(re.fullmatch(re.sub(r"\[.*?\]", r"\\d+", choice), value))
    return bool(value == choice and type(value) is type(choice))


def _written(value: Any) -> str:
    return {None: "null", True: "true", False: "false"}.get(value, str(value))


@cache
def _classes(package: str, file: str) -> dict[str, ast.ClassDef]:
    """The classes of one source file by name."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


@cache
def _nested(name: str) -> tuple[str, ...]:
    """The fields of a settings class inside PEFT's, which is given field by field."""
    node = _classes("peft", "tuners/lora/config.py").get(name)
    statements = node.body if node else []
    targets = [each.target for each in statements if isinstance(each, ast.AnnAssign)]
    return tuple(target.id for target in targets if isinstance(target, ast.Name))


@cache
def _enumeration(name: str) -> tuple[str, ...]:
    """The values of an enumeration of transformers, or nothing if it has none of that name."""
    if name in PLAIN or name.endswith("Config"):
        return ()
    for file in ENUMS:
        if node := _classes("transformers", file).get(name):
            return tuple(
                statement.value.value
                for statement in node.body
                if isinstance(statement, ast.Assign)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
            )
    return ()


def _choices(node: ast.AnnAssign) -> tuple[Any, ...]:
    """The choices in a field's metadata."""
    for part in ast.walk(node):
        if isinstance(part, ast.Dict):
            for key, value in zip(part.keys, part.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "choices":
                    return tuple(_values(value))
    return ()
