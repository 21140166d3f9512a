"""What is drawn for an image, made of numbers that are uniform in [0, 1).

All of an image's numbers are drawn in one call, and each has a name: one call a
number, which is dozens of small programs, takes seconds to compile.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

# Of a degradation, in their order, which decides what a key draws.
NAMES = (
  "side",
  "kind",
  "sigma_x",
  "sigma_y",
  "theta",
  "betag",
  "betap",
  "cutoff",
  "sinc",
  "blur",
  "direction",
  "factor",
  "mode",
  "grey",
  "gaussian",
  "strength",
  "quality",
  "jpeg first",
)


def draw(key: Array, times: int) -> list[dict[str, Array]]:
  """Draws an image's numbers, by their names, for several degradations.

  Args:
    key: Its key.
    times: How many.

  >>> (numbers,) = draw(jax.random.key(0), 1)
  >>> 0 <= float(numbers["side"]) < 1
  True
  """
  numbers = jax.random.uniform(key, (times, len(NAMES)), jnp.float32)
  return [dict(zip(NAMES, each, strict=True)) for each in numbers]


def between(number: Array, low: Array, high: Array) -> Array:
  """Returns what is uniform between two numbers.

  Args:
    number: Uniform in [0, 1).
    low: The least.
    high: The most.

  >>> between(0.25, 2.0, 4.0)
  2.5
  """
  return low + (high - low) * number


def happens(number: Array, probability: float) -> Array:
  """Returns whether something is done.

  Args:
    number: Uniform in [0, 1).
    probability: From 0, never, to 1, always.

  >>> happens(0.25, 0.3), happens(0.0, 0.0)
  (True, False)
  """
  return number < probability


def chosen(number: Array, weights: Sequence[float]) -> Array:
  """Returns one of several, an index.

  Args:
    number: Uniform in [0, 1).
    weights: Of each, 0 or more; not all 0.

  >>> [int(chosen(each, (0.5, 0.0, 0.5, 0.0))) for each in (0.25, 0.75)]
  [0, 2]
  """
  total = float(sum(weights))
  bounds, below = [], 0.0
  # The last that can be is so up to 1, whatever sums have been rounded to.
  last = max(i for i, weight in enumerate(weights) if weight)
  for weight in weights[:last]:
    below += weight / total
    bounds.append(below)
  bounds = jnp.asarray(bounds, jnp.float32)
  return (number >= bounds).sum(dtype=jnp.int32)


def around_one(number: Array, limits: Sequence[float]) -> Array:
  """Returns a shape: below 1 as often as above, uniform on each side.

  Args:
    number: Uniform in [0, 1).
    limits: The least and the most.

  Source: BasicSR `data/degradations.py`, of betas.

  >>> [float(around_one(each, (0.5, 4.0))) for each in (0.25, 0.75)]
  [0.75, 2.5]
  """
  below = between(2 * number, limits[0], 1.0)
  above = between(2 * number - 1, 1.0, limits[1])
  return jnp.where(number < 0.5, below, above)
