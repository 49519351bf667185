"""Training what remains."""
