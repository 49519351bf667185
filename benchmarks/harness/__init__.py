"""What the benchmarks share; no file here is a benchmark of its own."""
