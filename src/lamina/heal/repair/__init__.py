"""Repairs of a reduced model before training: weights next to its cuts compensate for them."""
