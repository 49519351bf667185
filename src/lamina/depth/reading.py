"""Reading tensors from safetensors files, each once and only where it is asked for."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from lamina.depth.safetensors_file import StoredTensor
from lamina.depth.source import Source

if TYPE_CHECKING:
    import torch

BLOCK_BYTES = 64 * 2**20
"""Memory that one piece of a streamed tensor takes, about."""

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""torch's names of types, and the safetensors format's."""


@contextmanager
def tensor_slices(source: Source, mapping: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Give tensors under new names, as slices that read when they are indexed.

    With plain reads (`pread`) memory holds what was asked for and nothing else. Mapped files would
    count twice while a dtype is changed, and whoever rewrites such a file takes the process down.

    Args:
        source: The checkpoint; its files are open in the body.
        mapping: The names of the tensors, and those that they are given under.
    """
    from safetensors import safe_open

    with ExitStack() as stack:
        files = {
            filename: stack.enter_context(
                safe_open(source.fetch(filename), framework="pt", backend="pread")
            )
            for filename in sorted({source.weight_map[name] for name in mapping})
        }
        yield {new: files[source.weight_map[old]].get_slice(old) for old, new in mapping.items()}


def byte_blocks(
    piece: Any, stored: StoredTensor, dtype: "torch.dtype | None"
) -> Iterator[memoryview]:
    """Read a tensor in blocks of rows, as bytes.

    Args:
        piece: Its slice of `tensor_slices`.
        stored: Its type and shape in the file.
        dtype: What to convert it to; None leaves it as it is.
    """
    if not stored.shape:
        yield as_bytes(piece[...], dtype)
        return
    rows = max(1, BLOCK_BYTES * stored.shape[0] // max(1, stored.nbytes))
    for start in range(0, stored.shape[0], rows):
        yield as_bytes(piece[start : min(start + rows, stored.shape[0])], dtype)


def weights_fingerprint(source: Source) -> str:
    """Return a SHA-256 that another set of weights would not have.

    It covers every tensor's name, type and shape, and the beginning of its content: enough to tell
    a fine-tuned model from its base, without reading all of either.
    """
    stored = source.stored(source.weight_map)
    digest = sha256()
    with tensor_slices(source, {name: name for name in stored}) as slices:
        for name in sorted(stored):
            digest.update(f"{name} {stored[name].dtype} {stored[name].shape}\n".encode())
            digest.update(_beginning(slices[name], stored[name]))
    return digest.hexdigest()


def _beginning(piece: Any, stored: StoredTensor) -> memoryview:
    """The first row of a matrix, or the first numbers of a vector."""
    if not stored.shape:
        return as_bytes(piece[...], None)
    count = 1 if len(stored.shape) > 1 else min(1024, stored.shape[0])
    return as_bytes(piece[:count], None)


def torch_dtype_of(stored: StoredTensor) -> "torch.dtype":
    """Return torch's form of a stored tensor's type: one of those that weights are trained in."""
    import torch

    names = {written: name for name, written in DTYPES.items()}
    dtype: torch.dtype = getattr(torch, names[stored.dtype])
    return dtype


def as_bytes(tensor: "torch.Tensor", dtype: "torch.dtype | None") -> memoryview:
    """Return a tensor's bytes as they stand in a safetensors file."""
    import torch

    converted = tensor if dtype is None else tensor.to(dtype)
    return memoryview(converted.contiguous().view(-1).view(torch.uint8).numpy())
