"""Scores of every removal, from one pass over the weights."""
