"""The order in which an image is degraded, and what is drawn for it."""

from __future__ import annotations

from jax import Array

from esrgan_jax.degradation.settings import Degradation


def degrade(keys: Array, hr: Array, settings: Degradation, scale: int) -> Array:
  """Returns LR images of HR ones: blur, size, noise and JPEG, twice.

  Args:
    keys: PRNG keys, `[B]`, of any implementation: an image's own.
    hr: Images, float `[B, H, W, 3]` in [0, 1], sides multiples of `scale`.
    settings: What is drawn from.
    scale: HR pixels per LR pixel.

  Returns:
    Images, float `[B, H / scale, W / scale, 3]` in [0, 1], of 256 levels.
  """
  raise NotImplementedError
