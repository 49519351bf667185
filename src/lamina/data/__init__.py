"""Rows, from files and hubs to token ids."""
