"""The machine a run is on: devices, processes, files, locks, caches, the console."""
