"""One module per command: compose, check, instantiate, call one function."""
