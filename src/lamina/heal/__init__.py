"""Training the layers that remain."""
