"""Weight files: readers, writers, naming dialects and the zoo."""
