"""Starts the processes of a run, and follows the jobs of a sweep."""
