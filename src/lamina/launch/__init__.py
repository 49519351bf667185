"""The processes of a run, and the jobs of a sweep."""
