"""Readers and writers of weight files: bytes to named arrays and back."""
