"""A model as one GGUF file, which llama.cpp serves."""

from pathlib import Path

from lamina.measure import engines
from lamina.measure.separate import in_engine

KINDS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
"""llama.cpp's names of the types that a whole model may have."""


def write_gguf(whole: Path, path: Path, kind: str, python: str | None) -> None:
    """Convert a folder with a whole model into a file of type `kind`; raises as `in_engine`."""
    if kind not in engines.FILE_TYPES:
        in_engine("convert", python, {"model": str(whole), "output": str(path), "kind": kind})
        return
    wide = whole / "wide.gguf"
    in_engine("convert", python, {"model": str(whole), "output": str(wide), "kind": "auto"})
    in_engine("quantize", python, {"model": str(wide), "output": str(path), "kind": kind})
