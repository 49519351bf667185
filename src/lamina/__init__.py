"""Lamina removes layers from a language model, heals what remains and measures what it cost."""

__version__ = "0.1.0"
