"""The machine of a run: devices, processes, files, locks, caches and the console."""
