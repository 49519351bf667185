"""Writes the list of tested families into docs/layers.md, from tests/architectures.py.

    python tools/families_list.py            # or make docs

tests/test_docs.py fails if the list is stale.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "layers.md"
MARKED = re.compile(r"(?<=<!-- families: `make docs` writes them -->\n).*?(?=<!-- end -->)", re.S)


def page() -> str:
    """Return the page with its list up to date."""
    from tests.architectures import ARCHITECTURES, MULTIMODAL, NAMES

    flat, nested = ([NAMES[name] for name in families] for families in (ARCHITECTURES, MULTIMODAL))
    text = (
        "Removal is tested against the full model run without the dropped layers, to the last bit, "
        f"in {len(flat)} architectures ({', '.join(flat)}) and in the text part of {len(nested)} "
        f"multimodal ones ({', '.join(nested)})."
    )
    return MARKED.sub(f"{_wrapped(text)}\n", PAGE.read_text())


def _wrapped(text: str, width: int = 110) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".lstrip()
    return "\n".join(lines)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(page())
