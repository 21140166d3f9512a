"""Noise: Gaussian and Poisson, of each channel its own, or grey.

Noise of an image is made of numbers that are drawn before, of a normal
distribution of mean 0 and variance 1: grey noise takes the first channel's.
Planes are `[C, H, W]` in [0, 1].
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array, lax

# As PyTorch's, of BT.601.
_GREY = (0.2989, 0.587, 0.114)
_LEVELS = 256
_WORD = 32  # Levels that are told of in one integer.
# Rates from here on have an expansion; below, probabilities are summed up.
_MANY = 4.0
_FEW_TERMS = 20  # P(more) < 1e-7 at that rate.


def gaussian_noise(normal: Array, sigma: Array, grey: Array) -> Array:
  """Returns Gaussian noise.

  Args:
    normal: Numbers drawn, `[C, H, W]`.
    sigma: Standard deviation, in levels of 255.
    grey: Whether it is the same in all channels.

  Returns:
    What is to be added, `[C, H, W]`.

  Source: BasicSR `data/degradations.py::generate_gaussian_noise_pt`.

  >>> gaussian_noise(jnp.ones((3, 1, 1)), 51.0, False)[:, 0, 0].tolist()
  [0.2..., 0.2..., 0.2...]
  """
  return _grey_or_not(normal, grey) * (sigma / 255)


def poisson_noise(
  planes: Array,
  normal: Array,
  scale: Array,
  grey: Array,
  size: tuple[Array, Array],
) -> Array:
  """Returns Poisson noise of an image: the brighter, the more.

  An image of n different levels has pixels of up to N events, N the next power
  of 2; N is 256 of a photo. Grey noise is that of the image in grey.

  Args:
    planes: The image, `[3, H, W]`, at the upper left of what may be more.
    normal: Numbers drawn, `[3, H, W]`.
    scale: Factor of the noise.
    grey: Whether it is the same in all channels.
    size: Rows and columns of the image, traced.

  Returns:
    What is to be added, `[3, H, W]`.

  Source: BasicSR `data/degradations.py::generate_poisson_noise_pt`.

  >>> planes = jnp.array([[[0.0, 0.5]]]).repeat(3, axis=0)
  >>> made = jax.jit(poisson_noise)
  >>> made(planes, jnp.ones((3, 1, 2)), 1.0, False, (1, 2)).shape
  (3, 1, 2)
  """
  weights = jnp.asarray(_GREY, planes.dtype)
  dim = (weights[:, None, None] * planes).sum(axis=0, keepdims=True)
  planes = jnp.where(grey, dim, planes)
  levels = jnp.clip(jnp.round(planes * 255), 0, 255)
  count = count_levels(levels, size).astype(jnp.float32)
  # A whole power, or next to it: the logarithm's rounding is to decide nothing.
  events = jnp.round(jnp.exp2(jnp.ceil(jnp.log2(count) - 1e-4)))
  rate = levels * (events / 255)
  drawn = poisson_quantile(rate, _grey_or_not(normal, grey))
  return (drawn / events - levels / 255) * scale


def poisson_quantile(rate: Array, normal: Array) -> Array:
  """Returns Poisson's numbers of what is of a normal distribution.

  The inverse of the distribution function, at the normal one's value: by sums
  of probabilities where few are expected, and elsewhere by an expansion that is
  rounded down.

  Args:
    rate: Expected number, 0 or more.
    normal: Of mean 0 and variance 1, of the same shape.

  Returns:
    Whole numbers, as floats.

  Source: Giles, Algorithm 955 (2016), equation 8, with three terms.

  >>> rates = jnp.array([0.0, 1.0, 100.0])
  >>> jax.jit(poisson_quantile)(rates, jnp.ones(3)).tolist()
  [0.0, 2.0, 110.0]
  """
  few = jnp.minimum(rate, _MANY)
  share = jax.scipy.stats.norm.cdf(normal)
  term = jnp.exp(-few)
  total, counted = term, jnp.zeros_like(rate)
  for number in range(1, _FEW_TERMS + 1):
    counted += (share > total).astype(rate.dtype)
    term = term * few / number
    total = total + term
  many = jnp.maximum(rate, _MANY)
  root = jnp.sqrt(many)
  w = normal
  series = (
    many
    + root * w
    + (1 / 3 + w**2 / 6)
    - (w / 36 + w**3 / 72) / root
    + (-8 / 405 + 7 / 810 * w**2 + w**4 / 270) / many
  )
  series = jnp.maximum(jnp.floor(series), 0.0)
  return jnp.where(rate < _MANY, counted, series)


def count_levels(levels: Array, size: tuple[Array, Array]) -> Array:
  """Counts the different levels of an image, all channels together.

  Args:
    levels: `[C, H, W]`, whole numbers from 0 to 255; the image is at the upper
      left.
    size: Its rows and columns, traced.

  Returns:
    A whole number.

  >>> int(count_levels(jnp.array([[[3.0, 255.0, 3.0, 7.0]]]), (1, 3)))
  2
  """
  height, width = size
  rows = jnp.arange(levels.shape[1]) < height
  columns = jnp.arange(levels.shape[2]) < width
  inside = rows[None, :, None] & columns[None, None, :]
  levels = levels.astype(jnp.uint32)
  bits = jnp.left_shift(jnp.uint32(1), levels % _WORD)
  bits = jnp.where(inside, bits, jnp.uint32(0))
  word = levels // _WORD
  # Bits of all pixels together, a word at a time: nothing is scattered.
  found = [
    lax.reduce(
      jnp.where(word == index, bits, jnp.uint32(0)),
      jnp.uint32(0),
      lax.bitwise_or,
      (0, 1, 2),
    )
    for index in range(math.ceil(_LEVELS / _WORD))
  ]
  return lax.population_count(jnp.stack(found)).sum()


def _grey_or_not(normal, grey):
  return jnp.where(grey, normal[:1], normal)
