"""data.answers: training rows whose answers the original model writes."""
