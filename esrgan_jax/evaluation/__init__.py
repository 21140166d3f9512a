"""Measures a model on images: the measures, and what runs them."""
