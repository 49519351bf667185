"""Reading tensors from safetensors files: each once, and no byte beside them.

The library's reader maps whole files, or reads a whole tensor where a few rows are asked for. Here
a tensor's bytes are read where the header says that they are.
"""

import json
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.errors import ModelError
from lamina.weights.header import StoredTensor
from lamina.weights.source import Source

if TYPE_CHECKING:
    import torch

BLOCK_BYTES = 16 * 2**20
"""Memory that one piece of a streamed tensor takes, about."""

DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
"""torch's names of types, and the safetensors format's."""


class WeightFile:
    """One open safetensors file."""

    def __init__(self, path: Path, *, mapped: bool) -> None:
        """Open a file.

        Args:
            path: Of the file.
            mapped: Whether tensors are views of the mapped file, which costs no copy.
        """
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY)
        self.map = mmap.mmap(self.descriptor, 0, access=mmap.ACCESS_COPY) if mapped else None
        # The kernel reads ahead, megabytes on some disks: into layers that nobody wants.
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        if self.map is not None and hasattr(mmap, "MADV_RANDOM"):
            self.map.madvise(mmap.MADV_RANDOM)

    def close(self) -> None:
        """Close the file; views of the map stay valid."""
        os.close(self.descriptor)

    def read(self, begin: int, nbytes: int) -> bytearray:
        """Read a range of the file.

        Raises:
            ModelError: The file has become shorter.
        """
        buffer = bytearray(nbytes)
        self.read_into(memoryview(buffer), begin)
        return buffer

    def read_into(self, buffer: memoryview, begin: int) -> None:
        """Fill a buffer from a place of the file on.

        Raises:
            ModelError: The file has become shorter.
        """
        while buffer:
            count = os.preadv(self.descriptor, [buffer], begin)
            if count == 0:
                raise ModelError(f"{self.path} became shorter while it was read")
            buffer, begin = buffer[count:], begin + count

    def ahead(self, begin: int, nbytes: int) -> None:
        """Have a range fetched from the disk while something else is done."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.descriptor, begin, nbytes, os.POSIX_FADV_WILLNEED)

    def view(self, begin: int, nbytes: int) -> mmap.mmap | None:
        """Have a range read ahead, and return the map; None if the file is not mapped."""
        if self.map is not None and nbytes and hasattr(mmap, "MADV_WILLNEED"):
            page = begin - begin % mmap.PAGESIZE
            for advice in (mmap.MADV_WILLNEED, mmap.MADV_NORMAL):  # random: a fault for each page
                self.map.madvise(advice, page, begin + nbytes - page)
        return self.map


class TensorSlice:
    """A tensor of a file, read when it is indexed: `[...]`, or some of its rows `[start:stop]`."""

    def __init__(self, file: WeightFile, stored: StoredTensor) -> None:
        """Point at a tensor of an open file."""
        self.file, self.stored = file, stored

    def get_shape(self) -> list[int]:
        """Return the shape, as the library's slices do."""
        return list(self.stored.shape)

    def get_dtype(self) -> str:
        """Return the format's name of the type, as the library's slices do."""
        return self.stored.dtype

    def rows(self, start: int, stop: int) -> bytearray:
        """Read the bytes of some rows."""
        row = self._row_bytes()
        return self.file.read(self.stored.begin + start * row, (stop - start) * row)

    def ahead(self, start: int, stop: int) -> None:
        """Have some rows fetched from the disk while something else is done."""
        row = self._row_bytes()
        self.file.ahead(self.stored.begin + start * row, (stop - start) * row)

    def __getitem__(self, index: Any) -> "torch.Tensor":
        import torch

        start, stop = 0, self.stored.shape[0] if self.stored.shape else 1
        if isinstance(index, slice):
            start, stop, _ = index.indices(stop)
        shape = (stop - start, *self.stored.shape[1:]) if self.stored.shape else ()
        dtype, row = torch_dtype_of(self.stored), self._row_bytes()
        begin, nbytes = self.stored.begin + start * row, (stop - start) * row
        view = self.file.view(begin, nbytes)
        if view is not None and nbytes and begin % dtype.itemsize == 0:
            count = nbytes // dtype.itemsize
            return torch.frombuffer(view, dtype=dtype, count=count, offset=begin).view(shape)
        tensor = torch.empty(shape, dtype=dtype)
        if nbytes:
            buffer = tensor.view(-1).view(torch.uint8).numpy()
            self.file.read_into(memoryview(buffer), begin)
        return tensor

    def _row_bytes(self) -> int:
        return (
            self.stored.nbytes // (self.stored.shape[0] or 1)
            if self.stored.shape
            else (self.stored.nbytes)
        )


@contextmanager
def tensor_slices(
    source: Source, mapping: Mapping[str, str], *, mapped: bool = False
) -> Iterator[dict[str, TensorSlice]]:
    """Give tensors under new names, as slices that read when they are indexed.

    Args:
        source: The checkpoint; its files are open in the body.
        mapping: The names of the tensors, and those that they are given under.
        mapped: Whether the tensors are views of the mapped files. That is the fastest where they
            stay as they are; where their type or device changes, memory would hold both.
    """
    stored = source.stored(mapping)
    with ExitStack() as stack:
        files = {}
        for filename in sorted({source.weight_map[name] for name in mapping}):
            path = source.fetch(filename)
            assert path is not None
            files[filename] = WeightFile(path, mapped=mapped)
            stack.callback(files[filename].close)
        yield {
            new: TensorSlice(files[source.weight_map[old]], stored[old])
            for old, new in mapping.items()
        }


def byte_blocks(piece: TensorSlice, dtype: "torch.dtype | None") -> Iterator[bytes | memoryview]:
    """Read a tensor in blocks of rows, as bytes.

    Args:
        piece: The tensor.
        dtype: What to convert it to; None leaves it as it is.
    """
    stored = piece.stored
    count = stored.shape[0] if stored.shape else 1
    rows = max(1, BLOCK_BYTES * count // max(1, stored.nbytes))
    for start in range(0, count, rows):
        stop = min(start + rows, count)
        piece.ahead(start, min(stop + rows, count))  # the next block, while this one is written
        yield (
            memoryview(piece.rows(start, stop))
            if dtype is None
            else as_bytes(piece[start:stop], dtype)
        )


def weights_fingerprint(source: Source) -> str:
    """Return a SHA-256 that another set of weights would not have.

    It covers every tensor's name, type and shape, and the beginning of its content: enough to tell
    a fine-tuned model from its base, without reading all of either.
    """
    digest = sha256()
    with tensor_slices(source, {name: name for name in source.weight_map}) as slices:
        for name, piece in sorted(slices.items()):
            stored = piece.stored
            digest.update(f"{name} {stored.dtype} {stored.shape}\n".encode())
            digest.update(piece.file.read(stored.begin, min(stored.nbytes, mmap.PAGESIZE)))
    return digest.hexdigest()


def identity(source: Source) -> list[str]:
    """Return what tells a model from every other: its commit or its weights, and its config."""
    weights = [source.revision, source.name] if source.revision else [weights_fingerprint(source)]
    return [*weights, json.dumps(source.config, sort_keys=True)]


def torch_dtype_of(stored: StoredTensor) -> "torch.dtype":
    """Return torch's form of a stored tensor's type.

    Raises:
        ModelError: There is none: the weights are packed in a way of their own.
    """
    import torch

    names = {written: name for name, written in DTYPES.items()}
    if stored.dtype not in names:
        raise ModelError(
            f"weights of type {stored.dtype} cannot be loaded; start from unpacked ones"
        )
    dtype: torch.dtype = getattr(torch, names[stored.dtype])
    return dtype


def as_bytes(tensor: "torch.Tensor", dtype: "torch.dtype") -> memoryview:
    """Return a tensor's bytes, in a type, as they stand in a safetensors file."""
    import torch

    return memoryview(tensor.to(dtype).contiguous().view(-1).view(torch.uint8).numpy())
