"""Measures a model in a process with unpatched model classes: see `protocol.figures`.

python -m lamina.measure.isolated FOLDER
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from lamina.measure.protocol import FIGURES_FILE, REQUEST_FILE, ModelRef, Protocol, figures
from lamina.runtime.files import write_json


def main() -> None:
    """Answer the request in the folder given on the command line."""
    folder = Path(sys.argv[1])
    request = json.loads((folder / REQUEST_FILE).read_text())
    ref, protocol = ModelRef(**request["ref"]), Protocol(**request["protocol"])
    write_json(folder / FIGURES_FILE, asdict(figures(ref, protocol)))


if __name__ == "__main__":
    main()
