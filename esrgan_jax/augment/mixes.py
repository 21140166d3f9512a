"""What mixes a pair with another one, or LR with HR: one pair at a time.

Functions of `(key, pair, ...)`, for `jax.vmap`: a pair is `(lr, hr)`, float
`[h, w, 3]` and `[scale * h, scale * w, 3]` in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from esrgan_jax.resize import imresize

Pair = tuple[Array, Array]


def mixup(key: Array, pair: Pair, partner: Pair, *, alpha: float) -> Pair:
  """Returns a weighted mean of two pairs.

  Args:
    key: PRNG key.
    pair: The pair.
    partner: Another one.
    alpha: The weights are Beta(alpha, alpha): towards 0, nearly always one of
      the two; at 1, any; far above, half of each.

  Source: mixup (arXiv:1710.09412), here for images as CutBlur's authors do.

  >>> black, white = (jnp.full((1, 1, 3), v) for v in (0.0, 1.0))
  >>> lr, hr = mixup(jax.random.key(0), (black, black), (white, white), alpha=9)
  >>> 0 < float(lr[0, 0, 0]) == float(hr[0, 0, 0]) < 1
  True
  """
  weight = symmetric_beta(key, alpha, pair[0].dtype)
  return jax.tree.map(lambda a, b: weight * a + (1 - weight) * b, pair, partner)


def cutmix(
  key: Array, pair: Pair, partner: Pair, *, sides: Sequence[float]
) -> Pair:
  """Returns a pair with a box of another one in it, at the same place.

  Args:
    key: PRNG key.
    pair: The pair.
    partner: Another one.
    sides: Least and most of the image's height, and of its width, that the box
      has.

  Source: CutMix (arXiv:1905.04899); the box as CutBlur's authors draw it.

  >>> black, white = (jnp.full((4, 4, 3), v) for v in (0.0, 1.0))
  >>> lr, _ = cutmix(
  ...   jax.random.key(0), (black, black), (white, white), sides=(0.5, 0.5))
  >>> float(lr.mean())
  0.25
  """
  (lr, hr), (other_lr, other_hr) = pair, partner
  inside = box(key, lr.shape[:2], sides)
  scale = hr.shape[0] // lr.shape[0]
  large = inside.repeat(scale, axis=0).repeat(scale, axis=1)
  return jnp.where(inside, other_lr, lr), jnp.where(large, other_hr, hr)


def cutblur(key: Array, pair: Pair, *, sides: Sequence[float]) -> Pair:
  """Returns a pair whose LR is clean within a box, or clean around it.

  Clean is what HR is at the size of LR, by MATLAB's bicubic: at scale 1, HR
  itself, as published. A network learns where there is something to repair.
  Where LR is already just that, nothing changes.

  Args:
    key: PRNG key.
    pair: The pair.
    sides: As of `cutmix`.

  Source: CutBlur (arXiv:2004.00448), section 3.1.

  >>> noisy, clean = (jnp.full((4, 4, 3), v) for v in (0.0, 1.0))
  >>> lr, _ = cutblur(jax.random.key(0), (noisy, clean), sides=(0.5, 0.5))
  >>> float(lr.mean()) in (0.25, 0.75)
  True
  """
  lr, hr = pair
  box_key, side_key = jax.random.split(key)
  inside = box(box_key, lr.shape[:2], sides)
  within = jax.random.bernoulli(side_key)
  return jnp.where(inside == within, shrunk(hr, lr.shape), lr), hr


def symmetric_beta(key: Array, alpha: float, dtype: jnp.dtype) -> Array:
  """Returns one number that is Beta(alpha, alpha), without a loop.

  `jax.random.beta` rejects draws until all rows have one: on several devices,
  they would have to agree each time.

  Args:
    key: PRNG key.
    alpha: > 0.
    dtype: Of the number.

  Source: Devroye, "Random variate generation in one line of code" (1996),
  section 3.

  >>> 0 <= float(symmetric_beta(jax.random.key(0), 1.2, jnp.float32)) <= 1
  True
  """
  tiny = jnp.finfo(dtype).tiny
  u, v, sign = jax.random.uniform(key, (3,), dtype, minval=tiny)
  spread = (u ** (-1 / alpha) - 1) * jnp.cos(2 * jnp.pi * v) ** 2
  half = 0.5 / jnp.sqrt(1 + 1 / jnp.maximum(spread, tiny))
  return jnp.where(sign < 0.5, 0.5 - half, 0.5 + half)


def box(key: Array, shape: Sequence[int], sides: Sequence[float]) -> Array:
  """Returns where a random box is, of whole pixels, anywhere in an image.

  Args:
    key: PRNG key.
    shape: Height and width of the image.
    sides: Least and most of either that the box has.

  Returns:
    bool `[height, width, 1]`.

  >>> int(box(jax.random.key(0), (8, 4), (0.5, 0.5)).sum())
  8
  """
  side_key, place_key = jax.random.split(key)
  low, high = sides
  parts = jax.random.uniform(
    side_key, (2,), jnp.float32, minval=low, maxval=high
  )
  places = jax.random.uniform(place_key, (2,), jnp.float32)
  inside = []
  for part, place, size in zip(parts, places, shape, strict=True):
    length = jnp.clip(jnp.round(part * size), 1, size)
    first = jnp.minimum(jnp.floor(place * (size - length + 1)), size - length)
    index = jnp.arange(size, dtype=jnp.float32)
    inside.append((index >= first) & (index < first + length))
  rows, columns = inside
  return (rows[:, None] & columns[None, :])[..., None]


def shrunk(hr: Array, shape: Sequence[int]) -> Array:
  """Returns HR at the size of LR, as LR is made: MATLAB's bicubic.

  Args:
    hr: `[scale * h, scale * w, 3]`.
    shape: Of LR, `(h, w, 3)`.

  >>> shrunk(jnp.ones((8, 8, 3)), (4, 4, 3)).shape
  (4, 4, 3)
  """
  return hr if hr.shape == shape else imresize(hr, size=shape[:2])
