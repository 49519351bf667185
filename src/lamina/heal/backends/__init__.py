"""Who provides the model's code: transformers, or Unsloth."""
