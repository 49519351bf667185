"""Writing safetensors as a stream: no more than a few megabytes of a model are in memory at once.

The library's own writer wants all tensors of a file at once, twice over. The format is eight bytes
of header length, a JSON header with the place of every tensor, and their bytes one after the other.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lamina.weights.header import BITS, StoredTensor
from lamina.weights.source import INDEX_FILE

MAX_SHARD_BYTES = 5 * 10**9
"""Files larger than this are split."""


@dataclass(frozen=True)
class Outgoing:
    """A tensor that is to be written."""

    stored: StoredTensor
    """Its type and shape in the file."""

    blocks: Callable[[], Iterator[bytes | memoryview]]
    """Its bytes, in order and in pieces; called once, when its turn has come."""


def write_shards(
    folder: Path,
    tensors: Mapping[str, Outgoing],
    progress: Callable[[int], object],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write model.safetensors, or numbered shards of it with an index.

    Args:
        folder: Where to; exists.
        tensors: By name; written in this order, those of wider types first within a file.
        progress: Called with the number of bytes after each piece.
        max_shard_bytes: Size from which on the files are split.
    """
    from huggingface_hub import constants, split_state_dict_into_shards_factory

    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.stored.nbytes,
        filename_pattern=constants.SAFETENSORS_WEIGHTS_FILE_PATTERN,
        max_shard_size=max_shard_bytes,
    )
    for filename, names in split.filename_to_tensors.items():
        # Wider types first: every tensor then begins at a multiple of its own width.
        ordered = sorted(names, key=lambda name: -BITS[tensors[name].stored.dtype])
        with (folder / filename).open("wb") as file:
            _write(file, {name: tensors[name] for name in ordered}, progress)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write(
    file: BinaryIO, tensors: Mapping[str, Outgoing], progress: Callable[[int], object]
) -> None:
    header = _header({name: tensor.stored for name, tensor in tensors.items()})
    file.write(len(header).to_bytes(8, "little") + header)
    for name, tensor in tensors.items():
        written = 0
        for block in tensor.blocks():
            file.write(block)
            written += len(block)
            progress(len(block))
        assert written == tensor.stored.nbytes, f"{name}: {written} bytes"


def _header(tensors: Mapping[str, StoredTensor]) -> bytes:
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        content[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    header = json.dumps(content, separators=(",", ":")).encode()
    return header + b" " * (-len(header) % 8)
