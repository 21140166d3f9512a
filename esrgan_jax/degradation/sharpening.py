"""Unsharp masking, as Real-ESRGAN sharpens its targets."""

from __future__ import annotations

from jax import Array


def usm_sharpen(
  images: Array, weight: float = 0.5, radius: int = 50, threshold: float = 10
) -> Array:
  """Returns images sharpened where they have edges.

  Args:
    images: Float `[..., H, W, 3]` in [0, 1].
    weight: How much of the difference to its blur an image gets.
    radius: Pixels a side of the blur's kernel; an even one is one more.
    threshold: Least difference to the blur that is an edge, in levels of 255.
  """
  raise NotImplementedError
