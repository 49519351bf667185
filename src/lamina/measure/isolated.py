"""Measures a model in a process with unpatched model classes: see `protocol.figures`.

python -m lamina.measure.isolated FOLDER
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from lamina.errors import LaminaError
from lamina.measure.engines import end_with_parent
from lamina.measure.evaluate import Evaluation
from lamina.measure.protocol import Expected, ModelRef, Protocol, figures
from lamina.measure.resumable import Place
from lamina.measure.separate import ANSWER_FILE, REQUEST_FILE
from lamina.measure.tasks.files import typed
from lamina.runtime.device import is_memory_error


def main() -> None:
    """Answer the request in the folder given on the command line, with an error if it has one."""
    end_with_parent()
    folder = Path(sys.argv[1])
    request = json.loads((folder / REQUEST_FILE).read_text())
    ref, how, place = ModelRef(**request["ref"]), request["protocol"], request["place"]
    expected = request["expected"] and Expected(**request["expected"])
    how["wanted"] = typed(Evaluation, how["wanted"], "the request")
    how["original"] = how["original"] and ModelRef(**how["original"])
    protocol, place = Protocol(**how), place and Place(**place)
    try:
        found = asdict(figures(ref, protocol, place, expected))
    except (LaminaError, MemoryError, RuntimeError) as error:
        if not isinstance(error, LaminaError) and not is_memory_error(error):
            raise
        kind = type(error).__name__ if isinstance(error, LaminaError) else "MemoryError"
        found = {"error": str(error), "kind": kind}
    # A broken model's losses may be NaN, which JSON lacks and Python's writes.
    (folder / ANSWER_FILE).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
