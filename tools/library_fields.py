"""Writes the fields of the installed TRL's SFTConfig and PEFT's LoraConfig to a table.

    python tools/library_fields.py            # or make fields
    python tools/library_fields.py --check    # fail if the table is not that of the libraries

The table has each library's oldest version, and of newer ones what changed since; a field that one
dropped is null. So the tested and the newest libraries each add their own versions.

Importing these classes takes seconds; preflight reads the table instead. Run it in a process of its
own: typing returns the first of several equal unions, such as str | list and list | str.
"""

import json
import sys
from dataclasses import fields, is_dataclass
from enum import Enum
from importlib.metadata import version
from inspect import get_annotations
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from packaging.version import Version

from lamina.config.library_fields import LIBRARIES, fields_in

TABLE = Path(__file__).parents[1] / "src" / "lamina" / "config" / "library_fields.json"
PLAIN = {
    NoneType: "null",
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    list: "list",
    dict: "dict",
}


def installed() -> dict[str, dict[str, Any]]:
    """Return what each field of the installed libraries takes, by library."""
    from peft import LoraConfig
    from trl import SFTConfig

    found: dict[str, dict[str, Any]] = {
        library: {} for each in LIBRARIES.values() for library in each
    }
    for settings in (SFTConfig, LoraConfig):
        hints = get_type_hints(settings)
        for field in fields(settings):
            taken = _taken(hints[field.name])
            if choices := field.metadata.get("choices"):
                taken = {"types": _without_text(taken["types"]), "values": [*choices]}
            owner = next(each for each in settings.__mro__ if field.name in get_annotations(each))
            found[owner.__module__.partition(".")[0]][field.name] = taken
    return found


def updated(table: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return a table with the installed versions."""
    for library, found in installed().items():
        name = f"{library} {version(library)}"
        others = {each: known for each, known in table.items() if each != name}
        older = fields_in(others, library, Version(version(library)))
        gone = {field: None for field, taken in older.items() if taken and field not in found}
        new = {field: taken for field, taken in found.items() if older.get(field) != taken}
        table = {**others, name: {**new, **gone}} if new or gone else others
    return table


def _taken(annotation: Any) -> dict[str, Any]:
    """What an annotation takes: types, single values, items of a list, keys of a mapping."""
    taken: dict[str, Any] = {"types": []}
    for part in (
        get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    ):
        kind = get_origin(part) or part
        if kind is Literal:
            taken.setdefault("values", []).extend(get_args(part))
        elif issubclass(kind, Enum):
            taken["values"] = [each.value for each in kind]
            taken["types"] = _without_text(taken["types"])
        elif is_dataclass(kind):
            taken["keys"] = [each.name for each in fields(kind)]
            taken["types"].append("dict")
        elif kind in PLAIN and not (kind is str and "values" in taken):
            taken["types"].append(PLAIN[kind])
            if kind is list and get_args(part) and get_origin(get_args(part)[0]) is None:
                taken["items"] = _taken(get_args(part)[0])
    if taken["types"].count("dict") > 1:  # a settings class or any mapping
        taken["types"].remove("dict")
        del taken["keys"]
    return taken


def _without_text(types: list[str]) -> list[str]:
    return [each for each in types if each != "str"]


def text(table: dict[str, dict[str, Any]]) -> str:
    """Return the table as JSON, one field per line."""
    libraries = (
        f'"{name}": {{\n'
        + ",\n".join(f'  "{field}": {json.dumps(taken)}' for field, taken in known.items())
        + "\n}"
        for name, known in sorted(table.items())
    )
    return "{" + ",\n".join(libraries) + "}\n"


def main() -> None:
    """Write the table, or compare it."""
    known = TABLE.read_text(encoding="utf-8")
    found = text(updated(json.loads(known)))
    if "--check" not in sys.argv:
        TABLE.write_text(found, encoding="utf-8")
    elif known != found:
        sys.exit(f"error: {TABLE.name} is not that of the installed libraries: make fields")


if __name__ == "__main__":
    main()
