"""Copies of the config files, out of which the mistakes are taken."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import yaml
from omegaconf import OmegaConf

from lamina.runtime.paths import conf_dir

Keys = tuple[Any, ...]
"""The keys from the root of the whole config down to a value."""


@dataclass(frozen=True, kw_only=True)
class FileValues:
    """The values of a copied file that were put aside."""

    name: str
    """The file's, as Hydra says it."""

    path: Path
    """Where it lies."""

    content: dict[Any, Any]
    """The values, as they stood in it."""

    @property
    def above(self) -> Keys:
        """The keys under which the whole config has the file's content."""
        header = re.search(r"^#\s*@package\s+(\S+)", self.path.read_text("utf-8"), re.MULTILINE)
        package = header[1] if header else self.name.rpartition("/")[0].replace("/", ".")
        return tuple(each for each in package.split(".") if each not in ("", "_global_"))

    def leaves(self) -> list[tuple[Keys, Any]]:
        """Return each value that is no mapping of others, with its keys."""
        return list(_leaves(self.content, self.above))

    def leave_out(self, keys: Keys) -> None:
        """Forget one value, and the mappings in which there is no other."""
        path, nodes = keys[len(self.above) :], [self.content]
        for key in path[:-1]:
            nodes.append(nodes[-1][key])
        for node, key in zip(reversed(nodes), reversed(path), strict=True):
            del node[key]
            if node:
                return

    def write_back(self) -> None:
        """Put what is left into the file again."""
        _write(self.path, {**_content(self.path), **self.content})


class ConfigCopies:
    """The shipped config folder and the one given with --config-dir, copied to be changed.

    Hydra stops at the first mistake in a file; without it the rest can be looked at. The files
    themselves are never written to. To be used in a `with` statement, which deletes the copies.

    Args:
        config_dir: What --config-dir gave.
    """

    def __init__(self, config_dir: str | None) -> None:
        self._place = TemporaryDirectory(prefix="lamina-conf-")
        self.conf = Path(self._place.name) / "conf"
        self.added = Path(self._place.name) / "added"
        self.emptied: list[FileValues] = []
        self._given = Path(config_dir).absolute() if config_dir else None
        shutil.copytree(conf_dir(), self.conf)
        if self._given is not None and self._given.is_dir():
            shutil.copytree(self._given, self.added)

    def __enter__(self) -> Self:
        """Return the copies."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Delete the copies."""
        self._place.cleanup()

    def named(self, text: str) -> str:
        """Return a text with the names of the files themselves in place of the copies'."""
        return text.replace(str(self.conf), str(conf_dir())).replace(
            str(self.added), str(self._given)
        )

    def has_group(self, name: str) -> bool:
        """Say whether an argument chooses an option: whether a folder has its name."""
        return "/" in name or any((folder / name).is_dir() for folder in (self.conf, self.added))

    def empty(self, name: str) -> bool:
        """Put a file's values aside, in `emptied`, so that only its choices of options are left.

        Args:
            name: The file's, as Hydra says it: `experiment/mine`.

        Returns:
            Whether it had any.
        """
        for path in (folder / f"{name}.yaml" for folder in (self.conf, self.added)):
            content = _content(path)
            choices = {key: content.pop(key) for key in ("defaults",) if key in content}
            if content:
                self.emptied.append(FileValues(name=name, path=path, content=content))
                _write(path, choices)
                return True
        return False

    def choose(self, group: str, option: str | None, instead: str | None) -> bool:
        """Take a group's choice out of every defaults list, and what its file sets below it.

        Args:
            group: Such as `model`.
            option: The one chosen; None: any.
            instead: The option to put in its place; what is set below it stays then.

        Returns:
            Whether one was there.
        """
        found = False
        for path in (*self.conf.rglob("*.yaml"), *self.added.rglob("*.yaml")):
            content = _content(path)
            entries = content.get("defaults") or []
            for entry in [each for each in entries if _chooses(each, group, option)]:
                found = True
                if instead is None:
                    entries.remove(entry)
                    content.pop(group, None)
                else:
                    entry[next(iter(entry))] = instead
                _write(path, content)
        return found


def _content(path: Path) -> dict[Any, Any]:
    """Return what stands in a file; nothing if it is not there or no YAML."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, content: dict[Any, Any]) -> None:
    """Write the content below the comments that a file begins with, such as its package."""
    head = re.match(r"(?:#.*\n|\s*\n)*", path.read_text(encoding="utf-8"))
    path.write_text(f"{head[0] if head else ''}{OmegaConf.to_yaml(content)}", encoding="utf-8")


def _leaves(node: dict[Any, Any], above: Keys) -> Iterator[tuple[Keys, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value


def _chooses(entry: Any, group: str, option: str | None) -> bool:
    """Say whether an entry of a defaults list chooses that option of a group."""
    if not isinstance(entry, dict):
        return False
    name, chosen = next(iter(entry.items()))
    plain = re.sub(r"^(?:override |optional )*/?", "", str(name)).partition("@")[0]
    return plain == group and option in (None, str(chosen))
