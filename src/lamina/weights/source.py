"""A model's source: a local folder, or a hub repository at one commit. Imports no torch."""

import json
import reprlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lamina.errors import LaminaError, ModelError, reason_of
from lamina.weights import hub
from lamina.weights.header import StoredTensor, read_header
from lamina.weights.text_part import text_config, text_names, text_tensor

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
ADAPTER_FILE = "adapter_config.json"

LARGEST_JSON = 100_000_000
"""Bytes of the largest JSON file that is read."""

ADAPTER = (
    "that folder holds an adapter, not a model: lamina export RUN --output DIR writes the model"
)


@dataclass(frozen=True)
class Source:
    """Where a model's files are read from."""

    name: str
    """Hub id or absolute path of a local folder, as an adapter records it as its base."""
    revision: str | None
    """Commit of the hub repository; None for a local folder."""
    folder: Path
    """Folder of config.json: the local folder, or the snapshot in the hub cache."""

    @property
    def is_local(self) -> bool:
        """Whether the model is a local folder rather than a hub repository."""
        return self.revision is None

    @cached_property
    def whole_config(self) -> dict[str, Any]:
        """The content of config.json."""
        return read_json(self.folder / "config.json")

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json; for a multimodal model, that of its text part alone."""
        text = text_config(self.whole_config)
        if text and text["tie_word_embeddings"]:
            # A checkpoint that stores a head does not tie it, whatever its config.json says.
            heads = (name.endswith("lm_head.weight") for name in self.stored_names)
            text["tie_word_embeddings"] = not any(heads)
        return text or self.whole_config

    @property
    def is_text_part(self) -> bool:
        """Whether the model is the text part of a multimodal one."""
        return self.config is not self.whole_config

    @cached_property
    def stored_names(self) -> Collection[str]:
        """The names in `files`, without downloading weights for them."""
        is_cached = (self.folder / SINGLE_FILE).is_file()
        if self.is_local or is_cached or self.fetch(INDEX_FILE, required=False):
            return self.files.keys()
        return hub.read_headers(self.name, self.revision).keys()

    @cached_property
    def weight_map(self) -> dict[str, str]:
        """The name of the file that holds each tensor, by the tensor's name in the model."""
        return {name: self.files[stored] for name, stored in self._stored_names.items()}

    @cached_property
    def _stored_names(self) -> dict[str, str]:
        """The name in the checkpoint of each tensor of the model."""
        return self._named(self.files)

    def _named(self, stored: Iterable[str]) -> dict[str, str]:
        if self.is_text_part:
            return text_names(stored, self.config)
        return {name: name for name in stored}

    @cached_property
    def files(self) -> dict[str, str]:
        """The name of the file that holds each tensor of the checkpoint.

        Raises ModelError if there are no safetensors weights, the index or the single file cannot
        be read, or the hub cannot be reached.
        """
        # A cache filled by other means may not know that there is no index.
        single = (self.folder / SINGLE_FILE).is_file()
        if not single and self.fetch(INDEX_FILE, required=False):
            return self._indexed()
        if single or self.fetch(SINGLE_FILE, required=False):
            return dict.fromkeys(self.header(SINGLE_FILE), SINGLE_FILE)
        if not self.is_local and hub.offline():
            raise ModelError(hub.unreachable(f"model_name={self.name}"))
        raise ModelError(
            f"model_name={self.name} has no safetensors weights "
            f"(neither {SINGLE_FILE} nor {INDEX_FILE}): convert it with save_pretrained first"
        )

    def _indexed(self) -> dict[str, str]:
        """Read the index's map; a file name that leads out of the folder is refused."""
        weight_map = read_json(self.folder / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelError(f"model_name={self.name}: {INDEX_FILE} has no weight_map")
        for filename in dict.fromkeys(map(str, weight_map.values())):
            if Path(filename).name != filename or not filename.endswith(".safetensors"):
                raise ModelError(
                    f"model_name={self.name}: {INDEX_FILE} names {filename!r}, which is not a file "
                    "of that folder"
                )
        return weight_map

    def header(self, filename: str) -> dict[str, StoredTensor]:
        """Read the header of a safetensors file, no tensor; raises ModelError if it is damaged."""
        path = self.fetch(filename)
        assert path is not None
        try:
            return read_header(path)
        except ValueError as error:
            raise ModelError(
                f"model_name={self.name}: {filename} is truncated or corrupt ({error}): "
                "download or copy it again"
            ) from error

    def stored(self, names: Iterable[str]) -> dict[str, StoredTensor]:
        """Look up tensors in the headers of the files that hold them; may raise a ModelError."""
        wanted = {name: self.weight_map[name] for name in names}
        headers = {filename: self.header(filename) for filename in sorted(set(wanted.values()))}
        for filename, header in headers.items():
            indexed = {name for name, file in self.files.items() if file == filename}
            if wrong := sorted(indexed ^ header.keys()):
                which = "lacks" if wrong[0] in indexed else "has"
                raise ModelError(
                    f"model_name={self.name}: {INDEX_FILE} disagrees with {filename}, which "
                    f"{which} {wrong[0]}: download or copy the model again"
                )
        return {
            name: self._tensor(name, headers[file][self._stored_names[name]])
            for name, file in wanted.items()
        }

    def _tensor(self, name: str, stored: StoredTensor) -> StoredTensor:
        return text_tensor(name, stored, self.config) if self.is_text_part else stored

    def all_stored(self) -> dict[str, StoredTensor]:
        """Look up every tensor; on the hub the headers are read without downloading the files."""
        if self.is_local:
            return self.stored(self.weight_map)
        header = hub.read_headers(self.name, self.revision)
        return {
            name: self._tensor(name, header[stored]) for name, stored in self._named(header).items()
        }

    @contextmanager
    def reading(self, filename: str) -> Iterator[None]:
        """Name the model, and the file, in what its content raises in the body.

        Libraries raise any kind of error on a field of another type, or a value out of range.
        """
        named = f"model_name={self.name}"
        try:
            yield
        except LaminaError as error:
            if not isinstance(error, ModelError) or str(error).startswith(named):
                raise
            raise ModelError(f"{named}: {error}") from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno:
                raise
            reason = reason_of(error.__cause__ or error)  # the hub names the value in the cause
            if isinstance(error, LookupError | AttributeError):  # often the bare name
                reason = f"{type(error).__name__}: {reason}"
            raise ModelError(f"{named}: {filename}: {reason}") from error

    @property
    def is_at_hand(self) -> bool:
        """Whether looking for further files needs no hub, or the hub answers."""
        return self.is_local or hub.offline() or hub.is_reachable()

    def names_in(self, folder: str, suffix: str) -> list[str]:
        """Return the names of a folder's files with a suffix; none if there is no such folder."""
        if self.is_local:
            return sorted(path.name for path in (self.folder / folder).glob(f"*{suffix}"))
        return hub.names_in(self.name, folder, suffix, self.revision)

    def fetch(self, filename: str, *, required: bool = True) -> Path | None:
        """Return the local path of one file, downloading it from the hub if necessary.

        With HF_HUB_OFFLINE, a file that is not cached counts as missing. Raises ModelError if a
        required file is missing, or the hub cannot be reached.
        """
        path = self.folder / filename
        if path.is_file():
            return path
        if self.is_local:
            if required:
                raise ModelError(f"model_name={self.name}: {filename} is missing from that folder")
            return None
        return hub.download(self.name, filename, self.revision, required=required)


def resolve(model_name: str, revision: str | None = None) -> Source:
    """Find a model by its hub id or local path, reading at most its config.json.

    `revision` is a commit on the hub, where a folder of the same name is not looked for; None for
    the newest. Raises ModelError if the folder or its config.json is missing, or the hub does not
    know the id or cannot be reached.
    """
    folder = Path(model_name).expanduser()
    if revision is None and folder.is_dir():
        folder = folder.resolve()
        if not (folder / "config.json").is_file():
            is_adapter = (folder / ADAPTER_FILE).is_file()
            reason = ADAPTER if is_adapter else "no config.json in that folder"
            raise ModelError(f"model_name={model_name}: {reason}")
        return Source(name=str(folder), revision=None, folder=folder)
    if model_name.startswith((".", "/", "~")) or model_name.count("/") > 1:
        raise ModelError(f"model_name={model_name}: no such folder")
    path = hub.download(model_name, "config.json", revision, required=True)
    assert path is not None
    # The snapshot folder is named after its commit.
    return Source(name=model_name, revision=path.parent.name, folder=path.parent)


@contextmanager
def made_of(path: Path) -> Iterator[None]:
    """Name the file of ours on whose content the body fails."""
    try:
        yield
    except LaminaError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(f"{path}: damaged, or of another version ({reason})") from error


def read_json(
    path: Path, types: Mapping[str, Any] | None = None, largest: float = LARGEST_JSON
) -> dict[str, Any]:
    """Read a file with a JSON object, as `parse_json` does; raises ModelError if it cannot be."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("not a regular file")
        if path.stat().st_size > largest:
            raise ValueError(f"larger than {largest:,} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{path} cannot be read as JSON: {reason}") from error
    return parse_json(str(path), text, types)


def parse_json(
    name: str, text: str | bytes, types: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Parse a JSON object called `name`; fields that it lacks become None if their type allows it.

    `types` has the class, or union of classes, of its fields. Raises ModelError for another.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ModelError(f"{name} cannot be read as JSON: {reason}") from error
    refuse_mistyped(name, content, types or {})
    return content | dict.fromkeys((types or {}).keys() - content.keys())


def refuse_mistyped(name: str, content: Any, types: Mapping[str, Any]) -> None:
    """Raise a ModelError that names a field of a JSON object that is missing or mistyped."""
    if not isinstance(content, dict):
        raise ModelError(f"{name}: expected a JSON object, found {reprlib.repr(content)}")
    for field, kind in types.items():
        value = content.get(field)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            found = reprlib.repr(content[field]) if field in content else "missing"
            expected = getattr(kind, "__name__", kind)
            raise ModelError(f"{name}: {field} is {found}, expected {expected}")
