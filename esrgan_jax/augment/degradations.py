"""What makes LR worse, and leaves HR alone: one pair at a time.

Functions of `(key, pair, ...)`, for `jax.vmap`: a pair is `(lr, hr)`, float
`[h, w, 3]` and `[scale * h, scale * w, 3]` in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from esrgan_jax.augment.mixes import Pair


def blur(key: Array, pair: Pair, *, sigmas: Sequence[float]) -> Pair:
  """Returns a pair whose LR is blurred, by a Gaussian.

  At the borders, the weights of what is there are those of all: grey stays as
  grey as it is.

  Args:
    key: PRNG key.
    pair: The pair.
    sigmas: Least and most standard deviation, in pixels of LR.

  >>> dot = jnp.zeros((5, 5, 3)).at[2, 2].set(1.0)
  >>> lr, hr = blur(jax.random.key(0), (dot, dot), sigmas=(0.5, 0.5))
  >>> round(float(lr[2, 2, 0]), 2), float(hr[2, 2, 0])
  (0.62, 1.0)
  """
  lr, hr = pair
  low, high = sigmas
  sigma = jax.random.uniform(key, (), lr.dtype, minval=low, maxval=high)
  # As sharp as it is, for one of nothing: no division of 0 by 0.
  sigma = jnp.maximum(sigma, 1e-3)
  rows, columns = (_gaussian(size, sigma) for size in lr.shape[:2])
  precision = jax.lax.Precision.HIGHEST
  lr = jnp.einsum("ij,jwc->iwc", rows, lr, precision=precision)
  return jnp.einsum("ij,hjc->hic", columns, lr, precision=precision), hr


def noise(key: Array, pair: Pair, *, levels: Sequence[float]) -> Pair:
  """Returns a pair whose LR is noisy: Gaussian, of each channel its own.

  Args:
    key: PRNG key.
    pair: The pair.
    levels: Least and most standard deviation, in levels of 255.

  >>> grey = jnp.full((64, 64, 3), 0.5)
  >>> lr, hr = noise(jax.random.key(0), (grey, grey), levels=(5.0, 5.0))
  >>> round(float(lr.std()) * 255), float(hr.std())
  (5, 0.0)
  """
  lr, hr = pair
  level_key, noise_key = jax.random.split(key)
  low, high = levels
  level = jax.random.uniform(level_key, (), lr.dtype, minval=low, maxval=high)
  drawn = jax.random.normal(noise_key, lr.shape, lr.dtype)
  return jnp.clip(lr + level / 255 * drawn, 0, 1), hr


def _gaussian(size, sigma):
  """What a pixel of one axis is a sum of, by rows: `[size, size]`."""
  index = jnp.arange(size, dtype=sigma.dtype)
  weights = jnp.exp(-0.5 * ((index[:, None] - index[None]) / sigma) ** 2)
  return weights / weights.sum(axis=1, keepdims=True)
