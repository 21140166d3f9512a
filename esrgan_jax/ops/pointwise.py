"""What networks of the family do to each number by itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array

NEGATIVE_SLOPE = 0.2  # ESRGAN, section 3.1; BasicSR `rrdbnet_arch.py`.
_RESIDUAL_SCALE = 0.2  # Paper: beta = 0.2, in each dense block and each RRDB.


def leaky_relu(x: Array) -> Array:
  """The rectifier of the paper: a slope of 0.2 below zero."""
  return jnp.maximum(x, x * jnp.asarray(NEGATIVE_SLOPE, x.dtype))


def add_fifth(x: Array, residual: Array) -> Array:
  """Residual scaling: x and a fifth of what a block adds to it."""
  return x + residual * fifth(x)


def channels(bias: Array) -> Array:
  """Shapes a bias `[C]` to be added to `[N, H, W, C]`."""
  return bias.reshape(1, 1, 1, -1)


def mask(x: Array, valid: Array | None) -> Array:
  """Sets `x` to zero outside the image, where there is a mask."""
  return x if valid is None else x * valid


def fifth(x: Array) -> Array:
  """The factor of residual scaling, in the dtype of `x`."""
  return jnp.asarray(_RESIDUAL_SCALE, x.dtype)
