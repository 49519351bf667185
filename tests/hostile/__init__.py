"""Configs, environments, models, checkpoints, data and faults that mean no good."""
