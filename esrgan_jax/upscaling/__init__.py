"""Upscales images of any size, from arrays to files of photos."""
