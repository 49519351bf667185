"""The reference model with one file changed."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import REFERENCE

MISSING = object()
"""In place of a field's value: the field is left out."""

Content = bytes | str | dict[str, Any] | list[Any] | Callable[[Path], object] | None


def tampered(folder: Path, name: str, content: Content) -> Path:
    """Copy the reference model with another file `name`: None leaves it out, functions make it."""
    shutil.copytree(REFERENCE, folder, copy_function=os.symlink)
    write(folder / name, content)
    return folder


def write(path: Path, content: Content) -> Path:
    path.unlink(missing_ok=True)
    if callable(content):
        content(path)
    elif content is not None:
        as_json = isinstance(content, dict | list)
        text = json.dumps(content) if as_json else content
        path.write_bytes(text if isinstance(text, bytes) else str(text).encode())
    return path


def changed(name: str, **changes: Any) -> dict[str, Any]:
    """Return a JSON file of the reference model with other fields."""
    content = {**json.loads((REFERENCE / name).read_text()), **changes}
    return {key: value for key, value in content.items() if value is not MISSING}


def encodings(content: dict[str, Any]) -> dict[str, bytes]:
    """Return a JSON file's content in ways that are no JSON object in UTF-8."""
    text = json.dumps(content)
    return {
        "a list": b"[1]",
        "null": b"null",
        "empty": b"",
        "truncated": text[: len(text) // 2].encode(),
        "UTF-16": text.encode("utf-16"),
        "Latin-1": text.replace("{", '{"\xe9": 1, ', 1).encode("latin-1"),
        "a BOM": b"\xef\xbb\xbf" + text.encode(),
        "binary": bytes(range(128, 256)),
        "nested": b"[" * 200_000,
    }


def safetensors(header: object, weights: bytes) -> bytes:
    """Return a safetensors file of any header: bytes as they are, anything else as JSON."""
    written = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + weights


def split_safetensors(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return a safetensors file's header and its weights."""
    content = path.read_bytes()
    begin = 8 + struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8:begin]), content[begin:]
