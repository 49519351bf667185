"""What was asked for: schema, checks, messages."""
