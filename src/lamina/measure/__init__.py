"""What removing layers cost and gained: loss, speed and memory, with their provenance."""
