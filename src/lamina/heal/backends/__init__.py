"""Providers of the model's code: transformers and Unsloth."""
