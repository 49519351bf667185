"""What it cost and what it gained."""
