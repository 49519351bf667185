"""Files of weights: where they are, what they hold, reading and writing them."""
