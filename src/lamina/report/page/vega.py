"""Vega in a process of its own: its engine keeps memory and threads, and a sweep goes on to train.

python -m lamina.report.page.vega FOLDER
"""

import base64
import json
import struct
import sys
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lamina.errors import OutputError
from lamina.measure.separate import ANSWER_FILE, REQUEST_FILE, SeparateProcessError, ask
from lamina.runtime.cache import cached, folder_of

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def javascript() -> str:
    """Return Vega's JavaScript, bundled once for each version: that takes seconds."""
    with cached(folder_of("page", [version("vl-convert-python")]), "library.json") as entry:
        if entry.content is None:
            entry.content = {"script": _answer({})}
        script: str = entry.content["script"]
    return script


def png(spec: dict[str, Any], scale: float) -> bytes:
    """Draw a Vega-Lite specification, with so many pixels for one of its own."""
    drawn = base64.b64decode(_answer({"spec": spec, "scale": scale}))
    # The converter leaves the pixels three times as large.
    parts, pixels, start = [], b"", len(SIGNATURE)
    while start < len(drawn):
        size, kind = struct.unpack(">I4s", drawn[start : start + 8])
        content = drawn[start + 8 : start + 8 + size]
        if kind == b"IDAT":
            pixels += content
        else:
            parts.append((kind, content))
        start += size + 12
    parts.insert(-1, (b"IDAT", zlib.compress(zlib.decompress(pixels), 9)))
    return SIGNATURE + b"".join(
        struct.pack(">I", len(content)) + kind + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )  # fmt: skip


def _answer(request: dict[str, Any]) -> str:
    try:
        answer = ask([sys.executable, "-m", __name__], request)
    except SeparateProcessError as error:
        raise OutputError(f"charts cannot be drawn: {error}") from error
    text: str = answer["text"]
    return text


def main() -> None:
    """Answer the request in the folder given on the command line."""
    import vl_convert

    folder = Path(sys.argv[1])
    request = json.loads((folder / REQUEST_FILE).read_text())
    if request:
        try:
            drawn = vl_convert.vegalite_to_png(request["spec"], scale=request["scale"])
        except ValueError as error:
            sys.exit(" ".join(str(error).splitlines()[:2]))  # the others are Vega's own stack
        text = base64.b64encode(drawn).decode()
    else:
        text = vl_convert.javascript_bundle("window.vegaEmbed=vegaEmbed;")
    (folder / ANSWER_FILE).write_text(json.dumps({"text": text}))


if __name__ == "__main__":
    main()
