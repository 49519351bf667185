"""The one way to have something computed in a separate process: a request in, an answer out."""

import json
import logging
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lamina.runtime.files import write_json

REQUEST_FILE, ANSWER_FILE = "request.json", "answer.json"


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
