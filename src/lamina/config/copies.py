"""Copies of the config files, out of which one mistake after the other is taken."""

import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import yaml
from omegaconf import OmegaConf

from lamina.config.paths import conf_dir


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

    def without_key(self, name: str, key: str) -> bool:
        """Take a key out of a file.

        Args:
            name: The file's, as Hydra says it: `experiment/mine`.
            key: Dotted, in the whole config; the file may stand anywhere above it.

        Returns:
            Whether it was there.
        """
        for path in (folder / f"{name}.yaml" for folder in (self.conf, self.added)):
            content = _content(path)
            parts = key.split(".")
            if any(_taken_out(content, parts[start:]) for start in range(len(parts))):
                _write(path, content)
                return True
        return False

    def values_for_groups(self, name: str, groups: Collection[str]) -> dict[str, Any]:
        """Return what a file gives in place of groups of keys: dotted key to value.

        Args:
            name: The file's, as Hydra says it.
            groups: The dotted keys, in the whole config, that are groups.
        """
        for path in (folder / f"{name}.yaml" for folder in (self.conf, self.added)):
            whole = "@package _global_" in (path.read_text("utf-8") if path.is_file() else "")
            prefix = "" if whole else f"{name.rpartition('/')[0].replace('/', '.')}."
            if found := dict(_values(_content(path), prefix, groups)):
                return found
        return {}

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


def _values(node: Any, prefix: str, groups: Collection[str]) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _values(value, f"{prefix}{key}.", groups)
        elif f"{prefix}{key}" in groups and not str(value).startswith("${"):
            yield f"{prefix}{key}", value


def _write(path: Path, content: dict[Any, Any]) -> None:
    """Write the content below the comments that a file begins with, such as its package."""
    head = re.match(r"(?:#.*\n|\s*\n)*", path.read_text(encoding="utf-8"))
    path.write_text(f"{head[0] if head else ''}{OmegaConf.to_yaml(content)}", encoding="utf-8")


def _taken_out(content: dict[Any, Any], parts: list[str]) -> bool:
    *above, last = parts
    node: Any = content
    for part in above:
        node = node.get(part) if isinstance(node, dict) else None
    return isinstance(node, dict) and node.pop(last, node) is not node


def _chooses(entry: Any, group: str, option: str | None) -> bool:
    """Say whether an entry of a defaults list chooses that option of a group."""
    if not isinstance(entry, dict):
        return False
    name, chosen = next(iter(entry.items()))
    plain = re.sub(r"^(?:override |optional )*/?", "", str(name)).partition("@")[0]
    return plain == group and option in (None, str(chosen))
