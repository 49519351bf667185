"""YAML files of the older form: read with their comments, and with what they extend.

A value is kept as YAML reads it and as it was written, because YAML 1.1 takes `1e-4` for a text,
`no` for false and `2024-05-01` for a date, and only the key says what was meant.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lamina.errors import ConfigError

EXTENDS = "_extends"
"""The key that names the file whose values this one starts from."""

_BLOCK_TEXT = ("|", ">")
_LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One key of one file."""

    value: Any
    """As YAML reads it."""

    text: str | None
    """A scalar as it was written, without quotes; None for lists, mappings and null."""

    file: Path
    """Where it stands."""

    comments: tuple[str, ...] = ()
    """The comment lines directly above it, from `#` on."""

    beside: str = ""
    """The comment behind it, from `#` on."""

    @property
    def shown(self) -> str:
        """The value for a message, shortened."""
        shown = self.text if self.text is not None else "null"
        if self.text is None and self.value is not None:
            shown = str(self.value)
        line = " ".join(shown.split())
        return line if len(line) <= 60 else f"{line[:57]}..."


@dataclass(frozen=True, kw_only=True)
class OlderFile:
    """One file: its keys, those of a mapping dotted, and the comments at its head."""

    path: Path
    extends: Path | None
    header: tuple[str, ...]
    entries: dict[str, Entry] = field(default_factory=dict)


def read_chain(path: Path) -> list[OlderFile]:
    """Read a file and all that it extends.

    Args:
        path: The file; what it extends is relative to its folder.

    Returns:
        The files, the given one first.

    Raises:
        ConfigError: A file is missing or no mapping, or the files extend each other in a circle.
    """
    chain: list[OlderFile] = []
    following: Path | None = path
    while following is not None:
        if any(following.resolve() == read.path.resolve() for read in chain):
            circle = " -> ".join(str(p) for p in [*(read.path for read in chain), following])
            raise ConfigError(f"{EXTENDS} goes in a circle: {circle}; one of them must not extend")
        try:
            chain.append(_read(following))
        except OSError as error:
            by = f"{chain[-1].path}: {EXTENDS}={following}" if chain else str(following)
            raise ConfigError(f"{by}: {str(error.strerror).lower()}") from error
        following = chain[-1].extends
    return chain


def _read(path: Path) -> OlderFile:
    try:
        text = path.read_text(encoding="utf-8-sig")
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        entries = _entries(loader, root, path, _LINE_BREAK.split(text)) if root else {}
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {_said(error)}") from error
    extends = entries.pop(EXTENDS, None)
    if extends is not None and not extends.text:
        raise ConfigError(f"{path}: {EXTENDS}={extends.shown}: expected the path of one file")
    return OlderFile(
        path=path,
        extends=path.parent / extends.text if extends and extends.text else None,
        header=_header(_LINE_BREAK.split(text)),
        entries=entries,
    )


def _said(error: Exception) -> str:
    """What a parser says, in one line."""
    if isinstance(error, RecursionError):
        return "nested without end"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: no YAML: {error.problem}"
    return " ".join(str(error).split())


def _entries(
    loader: yaml.SafeLoader, root: yaml.Node, path: Path, lines: list[str]
) -> dict[str, Entry]:
    """The keys of a file's mapping; a mapping below one of them gives `key.inner`."""
    found: dict[str, Entry] = {}
    for name, inner, comments in _pairs(loader, root, path, lines):
        key = repr(name) if "." in name else name  # such a key is not that of a mapping
        mapping = isinstance(inner, yaml.MappingNode)
        parts = list(_pairs(loader, inner, path, lines)) if mapping else []
        if not parts:
            found[key] = _entry(loader, inner, path, lines, comments)
        for part, value, below in parts:
            found[f"{key}.{part}"] = _entry(loader, value, path, lines, (*comments, *below))
            comments = ()
    return found


def _pairs(
    loader: yaml.SafeLoader, node: yaml.Node, path: Path, lines: list[str]
) -> Iterator[tuple[str, yaml.Node, tuple[str, ...]]]:
    """Key, value and the comments above the key, of each pair of a mapping."""
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}: expected a mapping of keys to values")
    seen: set[str] = set()
    for key, _ in node.value:
        name = _name(key, path)
        if name in seen:
            line = key.start_mark.line + 1
            raise ConfigError(f"{path}, line {line}: {name} stands twice; leave one of them")
        seen.add(name)
    loader.flatten_mapping(node)
    block_above = False
    # What `<<` brings comes first: a key of the mapping itself wins.
    for key, value in node.value:
        apart = not (block_above or node.flow_style)
        yield _name(key, path), value, _above(lines, key.start_mark.line) if apart else ()
        # The lines of a block text may look like comments.
        block_above = isinstance(value, yaml.ScalarNode) and value.style in _BLOCK_TEXT


def _name(key: yaml.Node, path: Path) -> str:
    if not isinstance(key, yaml.ScalarNode):
        raise ConfigError(f"{path}, line {key.start_mark.line + 1}: a key must be a text")
    return str(key.value)


def _entry(
    loader: yaml.SafeLoader, node: yaml.Node, path: Path, lines: list[str], above: tuple[str, ...]
) -> Entry:
    try:
        value = loader.construct_object(node, deep=True)
    except (AttributeError, IndexError, KeyError) as error:
        # What PyYAML 6.0.3 raises for !!timestamp, !!int and !!bool before a text that is none.
        line = node.start_mark.line + 1
        raise ConfigError(f"{path}, line {line}: the value is not what its tag says") from error
    text = node.value if isinstance(node, yaml.ScalarNode) and value is not None else None
    behind = lines[node.end_mark.line][node.end_mark.column :].strip()
    on_its_line = isinstance(node, yaml.ScalarNode) and node.style not in _BLOCK_TEXT
    beside = behind if on_its_line and behind.startswith("#") else ""
    return Entry(value=value, text=text, file=path, comments=above, beside=beside)


def _above(lines: list[str], line: int) -> tuple[str, ...]:
    """The comment lines directly above a line."""
    first = line
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return tuple(above.strip() for above in lines[first:line])


def _header(lines: list[str]) -> tuple[str, ...]:
    """The comment at the head of a file, if an empty line sets it apart from what follows."""
    count = next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))
    apart = count < len(lines) and not lines[count].strip()
    return tuple(line.strip() for line in lines[:count]) if apart else ()
