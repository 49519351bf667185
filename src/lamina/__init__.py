"""Lamina removes layers from a language model, heals what remains and measures what it cost."""

__version__ = "0.1.0"

FOR_NOTEBOOKS = {
    "load_reduced": "lamina.depth.loading",
    "read_runs": "lamina.commands.report",
    "read_scan": "lamina.report.scan_report",
}
"""The modules of the functions that docs/python.md describes; each is imported on first use."""


def __getattr__(name: str) -> object:
    if name not in FOR_NOTEBOOKS:
        raise AttributeError(f"module 'lamina' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(FOR_NOTEBOOKS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *FOR_NOTEBOOKS])
