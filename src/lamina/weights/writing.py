"""Writing safetensors as a stream, with a few megabytes of the model in memory at a time.

The library's own writer needs all tensors of a file in memory, twice. The format is eight bytes of
header length, a JSON header with the offsets of every tensor, and their bytes in that order.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.weights.header import BITS, StoredTensor
from lamina.weights.reading import BLOCK_BYTES, WeightFile
from lamina.weights.source import INDEX_FILE

MAX_SHARD_BYTES = 5 * 10**9
"""Larger files are split."""


@dataclass(frozen=True)
class Outgoing:
    """A tensor to write."""

    stored: StoredTensor
    """Its type and shape in the file."""
    blocks: Callable[[], Iterator[bytes | memoryview]]
    """Yields its bytes in order; called once, when the tensor is written."""
    file: WeightFile | None = None
    """The file that holds its bytes unchanged, from `stored.begin` on; None if they change."""


def write_shards(
    folder: Path,
    tensors: Mapping[str, Outgoing],
    progress: Callable[[int], object],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write model.safetensors into an existing folder, or numbered shards with an index.

    Tensors keep their order, except that wider types come first in each file. `progress` is called
    with the number of bytes of each block written.
    """
    from huggingface_hub import constants, split_state_dict_into_shards_factory

    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.stored.nbytes,
        filename_pattern=constants.SAFETENSORS_WEIGHTS_FILE_PATTERN,
        max_shard_size=max_shard_bytes,
    )
    for filename, names in split.filename_to_tensors.items():
        # Wider types first, so every tensor is aligned to its own width.
        ordered = sorted(names, key=lambda name: -BITS[tensors[name].stored.dtype])
        _write(folder / filename, {name: tensors[name] for name in ordered}, progress)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write(path: Path, tensors: Mapping[str, Outgoing], progress: Callable[[int], object]) -> None:
    header = _header({name: tensor.stored for name, tensor in tensors.items()})
    later, ahead = iter(tensors.values()), 0
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name, tensor in tensors.items():
            # The disk reads the next tensors while the kernel copies this one.
            while ahead < 4 * BLOCK_BYTES and (coming := next(later, None)):
                ahead += coming.stored.nbytes
                if coming.file:
                    coming.file.prefetch(coming.stored.begin, coming.stored.nbytes)
            ahead -= tensor.stored.nbytes
            file.flush()
            begin, size, source = file.tell(), tensor.stored.nbytes, tensor.file
            if not (source and source.copy_to(file.fileno(), tensor.stored.begin, size, progress)):
                file.seek(begin)
                for block in tensor.blocks():
                    progress(file.write(block))
            written = file.tell() - begin
            assert written == size, f"{name}: {written} bytes"


def _header(tensors: Mapping[str, StoredTensor]) -> bytes:
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        span = [offset, offset := offset + tensor.nbytes]
        content[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": span}
    header = json.dumps(content, separators=(",", ":")).encode()
    return header + b" " * (-len(header) % 8)
