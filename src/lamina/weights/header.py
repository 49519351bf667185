"""The tensors of a safetensors file, from its header alone. Imports no torch."""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Bits per element, by the safetensors name of the type."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file."""

    dtype: str
    """The safetensors name of the type, such as BF16."""

    shape: tuple[int, ...]

    begin: int = field(default=0, compare=False)
    """Offset of its bytes from the start of the file; 0 for a tensor not yet written."""

    columns: int = field(default=0, compare=False)
    """0, or the number of columns of a stored matrix of which this is some columns, transposed."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.size * BITS[self.dtype] // 8

    @property
    def is_floating_point(self) -> bool:
        """Whether its elements are floating-point numbers."""
        return "F" in self.dtype


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Read the tensors, by name, and check their offsets against the file's size.

    Raises:
        ValueError: The file is truncated, has bytes that belong to no tensor, or has no header.
    """
    from huggingface_hub import parse_local_safetensors_file_metadata
    from huggingface_hub.errors import SafetensorsParsingError

    begin = _begin_of_weights(path)
    try:
        listed = parse_local_safetensors_file_metadata(path).tensors
        tensors = {
            name: StoredTensor(info.dtype, tuple(info.shape), begin + info.data_offsets[0])
            for name, info in listed.items()
        }
        end = max((info.data_offsets[1] for info in listed.values()), default=0)
        declared = sum(tensor.nbytes for tensor in tensors.values())
    except (SafetensorsParsingError, KeyError, TypeError, ValueError) as error:
        raise ValueError("no readable header") from error
    actual = path.stat().st_size - begin
    if actual != end:
        raise ValueError(f"{actual:,} bytes of weights, {end:,} expected")
    if declared != end:
        raise ValueError("sizes and offsets disagree")
    return tensors


def _begin_of_weights(path: Path) -> int:
    """Return the offset of the weights' first byte; leave the header in the page cache.

    An ordinary read would start the kernel's readahead: megabytes of dropped layers.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        begin = 8 + int.from_bytes(os.pread(descriptor, 8, 0), "little")
        os.pread(descriptor, min(begin, os.fstat(descriptor).st_size), 0)
    finally:
        os.close(descriptor)
    return begin
