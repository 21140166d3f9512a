"""Images of one job on many machines, by Ray."""
