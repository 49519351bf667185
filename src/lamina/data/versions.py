"""The version of code that makes data: what the `datasets` library kept is found by it."""

import platform
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("datasets", "jinja2", "tokenizers", "transformers", "trl")
"""They read, show, tokenize and pack rows."""


@cache
def version_of(*modules: str) -> str:
    """Return a hash of some of the modules in this package, and of the libraries they stand on.

    The library knows functions by their names: without it, rows that another version of the code
    had read or tokenized would be taken from its cache.

    Args:
        modules: Their names, without the package.
    """
    digest = sha256(platform.python_version().encode())
    for name in LIBRARIES:
        digest.update(f"{name} {version(name)}\n".encode())
    for name in modules:
        digest.update((Path(__file__).with_name(f"{name}.py")).read_bytes())
    return digest.hexdigest()[:16]
