"""What observes a training: progress, logs, history, the clock and checkpoints."""
