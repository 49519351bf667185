"""The tensors of a safetensors file, from its header alone. Imports no torch."""

import json
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

LONGEST_HEADER = 100_000_008
"""Bytes before the weights that the safetensors library reads at most."""

LIBRARY_PREFIX = "Error while deserializing header: "


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
    """Read the tensors, by name, of a header that the safetensors library accepts.

    Raises ValueError if it refuses it: the file is truncated, its offsets overlap or leave bytes
    out, or a tensor has a type that `BITS` lacks.
    """
    from safetensors import SafetensorError, safe_open

    header = _header(path)
    try:
        with safe_open(path, "numpy"):
            pass
    except SafetensorError as error:
        raise ValueError(str(error).removeprefix(LIBRARY_PREFIX)) from error
    listed, begin = json.loads(header[8:]), len(header)
    listed.pop("__metadata__", None)
    if unknown := {info["dtype"] for info in listed.values()} - BITS.keys():
        raise ValueError(f"tensors of type {min(unknown)}")
    return {
        name: StoredTensor(info["dtype"], tuple(info["shape"]), begin + info["data_offsets"][0])
        for name, info in listed.items()
    }


def _header(path: Path) -> bytes:
    """Return the bytes before the weights' first; leave them in the page cache.

    An ordinary read would start the kernel's readahead: megabytes of dropped layers.
    """
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        begin = 8 + int.from_bytes(os.pread(file.fileno(), 8, 0), "little")
        return os.pread(file.fileno(), min(begin, LONGEST_HEADER), 0)
