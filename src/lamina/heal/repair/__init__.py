"""Repairs of a reduced model before training: weights beside its cuts make up for them."""
