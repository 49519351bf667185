"""A model as a folder that anything reads: standard files, written as a stream."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.depth.loading import refuse_unloadable
from lamina.depth.surgery import reduced_generation_config
from lamina.errors import OutputError
from lamina.export.card import card
from lamina.weights.header import StoredTensor
from lamina.weights.reading import DTYPES, TensorSlice, byte_blocks
from lamina.weights.source import Source, read_json
from lamina.weights.writing import Outgoing, write_shards

if TYPE_CHECKING:
    import torch

CARD_FILE, NOTE_FILE = "README.md", "lamina.json"

TOKENIZER_FILES = (
    "tokenizer.json tokenizer_config.json tokenizer.model special_tokens_map.json vocab.json "
    "vocab.txt merges.txt added_tokens.json chat_template.jinja chat_template.json"
).split()
"""What a tokenizer and its chat template may consist of."""


def write_beside(folder: Path, note: dict[str, Any], *, is_adapter: bool = False) -> None:
    """Write lamina.json and the model card.

    Args:
        folder: Where the weights are.
        note: Content of lamina.json; see `lamina.export.card.note`.
        is_adapter: Whether the weights are an adapter's.
    """
    (folder / NOTE_FILE).write_text(json.dumps(note, indent=2) + "\n")
    (folder / CARD_FILE).write_text(card(note, is_adapter=is_adapter))


def copy_tokenizer(source: Source, folder: Path) -> None:
    """Copy the files of a model's tokenizer as they are."""
    for name in TOKENIZER_FILES:
        if path := source.fetch(name, required=False):
            shutil.copyfile(path, folder / name)


def write_config(folder: Path, content: dict[str, Any], source: Source, dtype: str | None) -> None:
    """Write config.json, and generation_config.json where the source has one.

    Args:
        folder: Where to.
        content: Of config.json.
        source: The larger model.
        dtype: torch's name of the weights' new type; None if it stays.
    """
    names = {"dtype", "torch_dtype"} & content.keys() or {"dtype"}
    changed = {**content, **(dict.fromkeys(names, dtype) if dtype else {})}
    (folder / "config.json").write_text(json.dumps(changed, indent=2) + "\n")
    if path := source.fetch("generation_config.json", required=False):
        generation = reduced_generation_config(read_json(path))
        (folder / path.name).write_text(json.dumps(generation, indent=2) + "\n")


def outgoing(slices: Mapping[str, TensorSlice], dtype: "torch.dtype | None") -> dict[str, Outgoing]:
    """Make tensors ready to be written as they are read.

    Args:
        slices: Of `tensor_slices`, by the names that they are written under.
        dtype: What real numbers are converted to; None leaves them.
    """
    return {name: _outgoing(piece, dtype) for name, piece in slices.items()}


def _outgoing(piece: TensorSlice, dtype: "torch.dtype | None") -> Outgoing:
    stored = piece.stored
    if dtype is None or not stored.is_floating_point:
        return Outgoing(stored, lambda: byte_blocks(piece, None))
    name = DTYPES[str(dtype).removeprefix("torch.")]
    return Outgoing(StoredTensor(name, stored.shape), lambda: byte_blocks(piece, dtype))


def refuse_output(key: str, output: Path, *sources: Path) -> None:
    """Refuse to write where something is, or into a model that is read.

    Args:
        key: The option that an error names.
        output: Folder that is to be written.
        sources: Folders that are read.

    Raises:
        OutputError: The folder is one of the sources, lies in one, or is not empty.
    """
    place = output.expanduser().resolve()
    for source in sources:
        if place == source.resolve():
            raise OutputError(f"{key}={output} is the source itself: give another folder")
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise OutputError(f"{key}={output} is not empty: give a new or empty folder")


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Give a temporary folder beside the output; once whole and loadable it becomes the output.

    Raises:
        OutputError: It cannot be written, for instance because no space is left.
    """
    place = output.expanduser().resolve()
    partial = place.with_name(f".{place.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if place.exists():
            place.rmdir()
        partial.rename(place)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"{output} cannot be written: {error.strerror or error}; nothing is left of it"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_weights(folder: Path, tensors: Mapping[str, Outgoing], max_shard_bytes: int) -> None:
    """Write a model's tensors with a progress bar, and let transformers take them.

    Args:
        folder: With config.json.
        tensors: In the order in which they are read best.
        max_shard_bytes: Size from which on the files are split.

    Raises:
        ModelError: What was written does not load.
    """
    with _progress(tensors) as advance:
        write_shards(folder, tensors, advance, max_shard_bytes)
    refuse_unloadable(folder)


@contextmanager
def _progress(tensors: Mapping[str, Outgoing]) -> Iterator[Callable[[int], object]]:
    from tqdm import tqdm

    total = sum(tensor.stored.nbytes for tensor in tensors.values())
    # disable=None: quiet where the console is a file.
    with tqdm(total=total, unit="B", unit_scale=True, desc="writing", disable=None) as bar:
        yield bar.update
