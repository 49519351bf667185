"""Models on disk: final/, reduced, merged and converted ones, and the checks of them."""
