"""One module a command: compose, check, instantiate, execute."""
