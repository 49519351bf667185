"""Models on disk: final/, reduced, merged and converted ones, with their cards and checks."""
