"""YAML files of the older form: read with their comments, and with the files they extend.

ruamel.yaml gives each scalar as written. What it means depends on its key: the older loader was
`yaml.safe_load`, to which `1e-4` is text, `no` is false and `2024-05-01` is a date.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag
from typing_extensions import override

from lamina.errors import ConfigError
from lamina.runtime.yaml_text import refuse_unreadable

EXTENDS = "_extends"
"""The key that names the file to start from."""


@dataclass(kw_only=True)
class Entry:
    """A key's value in one file."""

    value: Any
    """None, bool, int or float as YAML 1.1 reads them, otherwise the text, list or mapping."""
    text: str | None
    """A scalar as written, without quotes; None for lists, mappings and null."""
    file: Path
    above: list[str] = field(default_factory=list)
    """The comment lines above the key, from `#` on."""
    beside: str = ""
    """The comment on the key's line, from `#` on."""

    @property
    def shown(self) -> str:
        """The value for a message, on one line and shortened."""
        read = str("null" if self.value is None else self.value)
        line = " ".join((read if self.text is None else self.text).split())
        return line if len(line) <= 60 else f"{line[:57]}..."


@dataclass(kw_only=True)
class OlderFile:
    """One file of the older form."""

    path: Path
    extends: Path | None = None
    entries: dict[str, Entry]
    """By key; one of a nested mapping is dotted."""
    header: list[str] = field(default_factory=list)
    """Comment lines at the head, separated from the keys by an empty line."""
    footer: list[str] = field(default_factory=list)
    """Comment lines below the last key."""


def read_chain(path: Path) -> list[OlderFile]:
    """Read a file and all that it extends, the file first; raises ConfigError if that fails."""
    chain: list[OlderFile] = []
    following: Path | None = path
    while following is not None:
        if any(following.resolve() == read.path.resolve() for read in chain):
            circle = " -> ".join(str(p) for p in [*(read.path for read in chain), following])
            raise ConfigError(f"{EXTENDS} forms a circle: {circle}; remove it from one of them")
        try:
            chain.append(_read(following))
        except OSError as error:
            by = f"{chain[-1].path}: {EXTENDS}={following}" if chain else str(following)
            raise ConfigError(f"{by}: {str(error.strerror).lower()}") from error
        following = chain[-1].extends
    return chain


class _AsWritten(VersionedResolver):
    """Reads every plain scalar as text."""

    @override
    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is ScalarNode and implicit[0] and value != "<<":
            return Tag(suffix="tag:yaml.org,2002:str")
        return super().resolve(kind, value, implicit)


def _read(path: Path) -> OlderFile:
    parser = YAML(pure=True)
    parser.preserve_quotes = True  # a plain scalar is then a str itself, others of a subclass
    parser.Resolver = _AsWritten
    try:
        refuse_unreadable(path)
        text = path.read_text(encoding="utf-8-sig")
        root = parser.load(text)
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"{path}{_reason(error)}") from error
    if root is None:
        return OlderFile(path=path, entries={})
    if not isinstance(root, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values")
    leaves = list(_leaves(path, root))
    read = OlderFile(path=path, entries={key: entry for key, entry, _ in leaves})
    _attach_comments(read, leaves, text)
    if extends := read.entries.pop(EXTENDS, None):
        if not extends.text:
            raise ConfigError(f"{path}: {EXTENDS}={extends.shown}: expected the path of one file")
        read.extends = path.parent / Path(extends.text).expanduser()
        read.header += extends.above
    return read


def _reason(error: Exception) -> str:
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f", line {error.problem_mark.line + 1}: invalid YAML: {error.problem}"
    return f": {' '.join(str(error).split())}"


Leaf = tuple[str, Entry, range]
"""Key, value, and the 0-based lines from the key to the value's end."""


def _leaves(path: Path, mapping: Any, prefix: str = "") -> Iterator[Leaf]:
    value: Any
    for name, value in mapping.items():
        if not isinstance(name, str):
            raise ConfigError(f"{path}: a key must be text, not a list or a mapping")
        # A key with a dot is not that of a nested mapping.
        key = prefix + (repr(str(name)) if "." in name else name)
        if isinstance(value, dict) and value and not prefix:
            yield from _leaves(path, value, f"{key}.")
            continue
        if not isinstance(value, str | list | dict):
            raise ConfigError(f"{path}: {key} has a tag: leave it out")
        text = str(value) if isinstance(value, str) else None
        if type(value) is str and (value := _meaning(value)) is None:
            text = None
        entry = Entry(value=value, text=text, file=path)
        # What `<<` merges in stands elsewhere.
        line = mapping.lc.data[name][0] if name in mapping.lc.data else -1
        items = len(value) if isinstance(value, list) else 0
        last = mapping[name].lc.item(items - 1)[0] if items else line
        yield key, entry, range(line, last + 1)


def _meaning(text: str) -> Any:
    """Return what YAML 1.1 makes of a plain scalar; a date stays text."""
    loader = yaml.SafeLoader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    if tag.endswith((":null", ":bool", ":int", ":float")):
        return loader.construct_object(yaml.ScalarNode(tag, text))
    return text


def _attach_comments(read: OlderFile, leaves: list[Leaf], text: str) -> None:
    """Give each entry the comments above it and in its lines."""
    comments = dict(sorted(_comments(text)))
    first = min((lines.start for _, _, lines in leaves), default=0)
    for line, (comment, is_alone) in comments.items():
        found = next(((entry, lines) for _, entry, lines in leaves if lines.stop > line), None)
        if found is None:
            read.footer.append(comment)
            continue
        entry, lines = found
        if line in lines and not is_alone and not entry.beside:
            entry.beside = comment
        elif len(read.header) == line and any(n not in comments for n in range(line, first)):
            read.header.append(comment)
        else:
            entry.above.append(comment)


def _comments(text: str) -> Iterator[tuple[int, tuple[str, bool]]]:
    """Yield each comment's 0-based line, its text, and whether it has the line to itself."""
    for token in YAML(pure=True).scan(text):
        for comment in _flat(token.comment):
            if isinstance(comment, str):  # beside the | or > of a block scalar
                yield token.start_mark.line, (comment.strip(), False)
                continue
            # A line break in front is not counted in the comment's own line.
            alone = comment.value.startswith("\n") or comment.column == 0
            for number, line in enumerate(comment.value.removeprefix("\n").split("\n")):
                if line.strip():
                    yield comment.start_mark.line + number, (line.strip(), alone or number > 0)


def _flat(comment: Any) -> list[Any]:
    if isinstance(comment, list):
        return [inner for each in comment for inner in _flat(each)]
    return [] if comment is None else [comment]
