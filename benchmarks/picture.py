"""Draws the README's picture.

    python benchmarks/picture.py

Shows: the closing table of `python -m train experiment=quickstart`, as docs/quickstart.svg.
Peer and aim: none.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from lamina.report.run_summary import summary

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "quickstart.svg"
COMMAND = "python -m train experiment=quickstart"


def main() -> None:
    """Run the README's command and draw its output."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        arguments = [*COMMAND.split()[1:], f"hydra.run.dir={folder}"]
        subprocess.run([sys.executable, *arguments], check=True)
        content = json.loads((folder / "result.json").read_text())
        # The picture's own temporary folder means nothing to a reader.
        content["provenance"]["base_revision"] = content["provenance"]["base_revision"] or "folder"
        with Path(parent, "console").open("w") as discarded:
            console = Console(record=True, width=92, file=discarded)
            console.print(Text(f"$ {COMMAND}", style="bold"))
            console.print(summary(content, Path("outputs/2026-11-22/21-00-00-000000")))
            drawing = console.export_svg(title="Lamina")
        # The picture must not fetch fonts from the network.
        PICTURE.write_text(re.sub(r"@font-face \{.*?\}\s*", "", drawing, flags=re.DOTALL))
    print(f"wrote {PICTURE}")


if __name__ == "__main__":
    main()
