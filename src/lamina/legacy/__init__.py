"""Configs of the older form."""
