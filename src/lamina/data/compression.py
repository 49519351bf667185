"""Compressed files of rows, recognised by their first bytes, whatever their names."""

import lzma
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from lamina.errors import DataError, either

FIRST_BYTES = {
    "gzip": rb"\x1f\x8b",
    "bz2": rb"BZh[1-9]1AY&SY",
    "xz": rb"\xfd7zXZ\0",
    "zstd": rb"\x28\xb5\x2f\xfd",
    "lz4": rb"\x04\x22\x4d\x18",
    "zip": rb"PK\x03\x04",
    "7z": rb"7z\xbc\xaf\x27\x1c",
}

SUFFIXES = ("", ".gz", ".bz2", ".xz", ".zst", ".lz4")
"""What may follow the suffix of a file of rows."""

ENDINGS = either(SUFFIXES[1:])

TAR = slice(257, 263)
"""Where a tar file has its magic bytes."""


def compression(path: Path) -> str | None:
    """Return how a file is compressed, or None if it is plain."""
    with path.open("rb") as file:
        start = file.read(16)
    return next((kind for kind, first in FIRST_BYTES.items() if re.match(first, start)), None)


@contextmanager
def decompressed(path: Path, named: str) -> Iterator[BufferedReader]:
    """Open a file, compressed or not, whose `KEY=PATH` is `named`; DataError for an archive."""
    kind = compression(path)
    if kind in ("zip", "7z"):
        raise _archive(named, kind)
    try:
        with _open(path, kind) as file:
            if file.peek(TAR.stop)[TAR] in (b"ustar\0", b"ustar "):
                raise _archive(named, "tar")
            yield file
    except (OSError, EOFError, lzma.LZMAError) as error:
        if kind is None or getattr(error, "errno", None):
            raise
        raise DataError(f"{named}: a damaged {kind} file ({error})") from error


def _open(path: Path, kind: str | None) -> BufferedReader:
    if kind is None:
        return path.open("rb")
    from pyarrow import input_stream

    xz = kind == "xz"
    raw: Any = lzma.open(path) if xz else input_stream(str(path), compression=kind)  # noqa: SIM115
    return BufferedReader(raw)


def _archive(named: str, kind: str) -> DataError:
    return DataError(f"{named}: a {kind} archive: unpack it, and set the path of what was in it")
