"""Reading tensors from safetensors files: each byte once, and only those that are needed.

The library's own reader maps entire files, or reads an entire tensor where a few rows are enough.
"""

import errno
import json
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
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
"""Approximate size of one block of a streamed tensor."""

NOT_IN_KERNEL = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
"""Why a kernel or file system does not copy a range from file to file itself."""

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
"""The safetensors name of each torch dtype."""


class WeightFile:
    """One open safetensors file."""

    def __init__(self, path: Path, *, mapped: bool) -> None:
        """Open a file; with `mapped`, tensors are views of the memory-mapped file, not copies."""
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY)
        self.map = mmap.mmap(self.descriptor, 0, access=mmap.ACCESS_COPY) if mapped else None
        # The kernel's readahead, megabytes on some disks, would read dropped layers.
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        if self.map is not None and hasattr(mmap, "MADV_RANDOM"):
            self.map.madvise(mmap.MADV_RANDOM)

    def close(self) -> None:
        """Close the file; views of its map stay valid."""
        os.close(self.descriptor)

    def read(self, begin: int, nbytes: int) -> bytearray:
        """Return `nbytes` bytes from offset `begin`; raises what `read_into` does."""
        buffer = bytearray(nbytes)
        self.read_into(memoryview(buffer), begin)
        return buffer

    def read_into(self, buffer: memoryview, begin: int) -> None:
        """Fill a buffer with bytes from offset `begin` on; raises ModelError if the file shrank."""
        while buffer:
            count = os.preadv(self.descriptor, [buffer], begin)
            if count == 0:
                raise ModelError(f"{self.path} shrank while it was being read")
            buffer, begin = buffer[count:], begin + count

    def copy_to(
        self, target: int, begin: int, nbytes: int, progress: Callable[[int], object]
    ) -> bool:
        """Copy a range to a file descriptor inside the kernel; return False where it cannot."""
        end = begin + nbytes if hasattr(os, "copy_file_range") else -1
        while begin < end:
            count = min(BLOCK_BYTES, end - begin)
            try:
                count = os.copy_file_range(self.descriptor, target, count, begin)
            except OSError as error:
                if error.errno not in NOT_IN_KERNEL:
                    raise
                return False
            if count == 0:
                return False  # some file systems say so; `read_into` tells whether the file shrank
            progress(count)
            begin += count
        return begin == end

    def prefetch(self, begin: int, nbytes: int) -> None:
        """Start fetching a range from the disk in the background."""
        end = begin + nbytes if hasattr(os, "posix_fadvise") else begin
        # At a call, Linux fetches no more than its readahead or the device's largest request.
        for start in range(begin, end, 2**20):
            count = min(2**20, end - start)
            os.posix_fadvise(self.descriptor, start, count, os.POSIX_FADV_WILLNEED)

    def view(self, begin: int, nbytes: int) -> mmap.mmap | None:
        """Prefetch a range; return the map of the whole file, or None if it is not mapped."""
        if self.map is not None and nbytes and hasattr(mmap, "MADV_WILLNEED"):
            page = begin - begin % mmap.PAGESIZE
            for advice in (mmap.MADV_WILLNEED, mmap.MADV_NORMAL):  # under RANDOM every page faults
                self.map.madvise(advice, page, begin + nbytes - page)
        return self.map


class TensorSlice:
    """A stored tensor, read when indexed: `[...]` for all of it, `[start:stop]` for rows."""

    def __init__(self, file: WeightFile, stored: StoredTensor) -> None:
        self.file, self.stored = file, stored
        rows = stored.shape[0] if stored.shape else 1
        self.row_bytes = stored.nbytes // (rows or 1)

    def get_shape(self) -> list[int]:
        """Return the shape, as safetensors' slices do."""
        return list(self.stored.shape)

    def get_dtype(self) -> str:
        """Return the safetensors name of the type, as safetensors' slices do."""
        return self.stored.dtype

    def rows(self, start: int, stop: int) -> bytearray:
        """Read the bytes of the rows [start, stop)."""
        if self.stored.columns:
            return bytearray(as_bytes(self[start:stop], torch_dtype_of(self.stored)))
        return self.file.read(*self._range(start, stop))

    def prefetch(self, start: int, stop: int) -> None:
        """Start fetching the rows [start, stop) from the disk in the background."""
        self.file.prefetch(*self._range(start, stop))

    def _range(self, start: int, stop: int) -> tuple[int, int]:
        """Offset and number of bytes of the rows [start, stop)."""
        return self.stored.begin + start * self.row_bytes, (stop - start) * self.row_bytes

    def __getitem__(self, index: Any) -> "torch.Tensor":
        import torch

        start, stop = 0, self.stored.shape[0] if self.stored.shape else 1
        if isinstance(index, slice):
            start, stop, _ = index.indices(stop)
        shape = (stop - start, *self.stored.shape[1:]) if self.stored.shape else ()
        dtype = torch_dtype_of(self.stored)
        if self.stored.columns:
            return self._transposed(dtype)[start:stop].contiguous()
        begin, nbytes = self._range(start, stop)
        view = self.file.view(begin, nbytes)
        if view is not None and nbytes and begin % dtype.itemsize == 0:
            count = nbytes // dtype.itemsize
            return torch.frombuffer(view, dtype=dtype, count=count, offset=begin).view(shape)
        tensor = torch.empty(shape, dtype=dtype)
        if nbytes:
            buffer = tensor.view(-1).view(torch.uint8).numpy()
            self.file.read_into(memoryview(buffer), begin)
        return tensor

    def _transposed(self, dtype: "torch.dtype") -> "torch.Tensor":
        """Read every row of the stored matrix, and view its wanted columns as rows."""
        import torch

        shape, columns = self.stored.shape, self.stored.columns
        span = (shape[1] - 1) * columns + shape[0]
        elements = self.file.read(self.stored.begin, span * dtype.itemsize)
        return torch.frombuffer(elements, dtype=dtype).as_strided(shape, (1, columns))


@contextmanager
def tensor_slices(
    source: Source, mapping: Mapping[str, str], *, mapped: bool = False
) -> Iterator[dict[str, TensorSlice]]:
    """Open a checkpoint's files; yield tensors by their new names, as slices read when indexed.

    `mapping` maps each tensor's name in the checkpoint to its new name. With `mapped`, tensors are
    views of the memory-mapped files. That is fastest for tensors that keep their type and device;
    converting or moving one holds it in memory twice.
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
    """Read a tensor as bytes in blocks of rows, converted to `dtype` unless that is None."""
    stored = piece.stored
    count = stored.shape[0] if stored.shape else 1
    rows = max(1, BLOCK_BYTES * count // max(1, stored.nbytes))
    for start in range(0, count, rows):
        stop = min(start + rows, count)
        piece.prefetch(start, min(stop + rows, count))  # the next block, while this one is written
        if dtype is None:
            yield memoryview(piece.rows(start, stop))
        else:
            yield as_bytes(piece[start:stop], dtype)


def weights_fingerprint(source: Source) -> str:
    """Return a SHA-256 that identifies a set of weights.

    It covers every tensor's name, type and shape, and the first page of its content: enough to tell
    a fine-tuned model from its base without reading all of either.
    """
    digest = sha256()
    with tensor_slices(source, {name: name for name in source.weight_map}) as slices:
        for name, piece in sorted(slices.items()):
            stored = piece.stored
            digest.update(f"{name} {stored.dtype} {stored.shape}\n".encode())
            digest.update(piece.file.read(stored.begin, min(stored.nbytes, mmap.PAGESIZE)))
    return digest.hexdigest()


def identity(source: Source) -> list[str]:
    """Return what identifies a model: its commit and name, or its weights; and its config."""
    weights = [source.revision, source.name] if source.revision else [weights_fingerprint(source)]
    return [*weights, json.dumps(source.config, sort_keys=True)]


def torch_dtype_of(stored: StoredTensor) -> "torch.dtype":
    """Return the torch dtype of a stored tensor; raises ModelError for packed quantized weights."""
    import torch

    for name, stored_name in DTYPES.items():
        if stored.dtype == stored_name:
            return getattr(torch, name)
    raise ModelError(f"weights of type {stored.dtype} cannot be loaded; use an unquantized model")


def as_bytes(tensor: "torch.Tensor", dtype: "torch.dtype") -> memoryview:
    """Return a tensor's bytes in a given dtype, as a safetensors file stores them."""
    import torch

    return memoryview(tensor.to(dtype).contiguous().view(-1).view(torch.uint8).numpy())
