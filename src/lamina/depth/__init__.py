"""Which layers stay, and the smaller model."""
