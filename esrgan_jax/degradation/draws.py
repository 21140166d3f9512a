"""What is drawn for an image: each thing by its name, from the image's key.

A thing's draw depends on the key and the thing's name alone, so that an option
that changes one thing moves no other.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array


def as_threefry(key: Array) -> Array:
  """Returns a key of JAX's default generator that is a function of a key.

  Others, such as `rbg`, draw other numbers where they are mapped over keys, or
  on other devices.

  Args:
    key: One typed key, of any implementation.

  >>> as_threefry(jax.random.key(0, impl="rbg")).dtype
  key<fry>
  """
  words = jax.random.key_data(key).reshape(-1)
  key = jax.random.wrap_key_data(words[:2], impl="threefry2x32")
  for word in words[2:]:
    key = jax.random.fold_in(key, word)
  return key


def named(key: Array, name: str) -> Array:
  """Returns the key of a thing.

  Args:
    key: The image's, or that of a part of it.
    name: The thing's.

  >>> named(jax.random.key(0), "noise").shape
  ()
  """
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


def between(key: Array, name: str, low: Array, high: Array) -> Array:
  """Draws a number uniformly.

  Args:
    key: As of `named`.
    name: As of `named`.
    low: The least.
    high: The most.

  >>> 2 <= float(between(jax.random.key(0), "sigma", 2, 3)) <= 3
  True
  """
  share = jax.random.uniform(named(key, name), dtype=jnp.float32)
  return low + (high - low) * share


def happens(key: Array, name: str, probability: float) -> Array:
  """Draws whether something is done.

  Args:
    key: As of `named`.
    name: As of `named`.
    probability: From 0, never, to 1, always.

  >>> bool(happens(jax.random.key(0), "blur", 1.0))
  True
  """
  # Of [0, 1): 1 is always more.
  share = jax.random.uniform(named(key, name), dtype=jnp.float32)
  return share < probability


def chosen(key: Array, name: str, weights: Sequence[float]) -> Array:
  """Draws one of several, an index.

  Args:
    key: As of `named`.
    name: As of `named`.
    weights: Of each, 0 or more; not all 0.

  >>> int(chosen(jax.random.key(0), "kind", (0.0, 2.0)))
  1
  """
  total, below, bounds = float(sum(weights)), 0.0, []
  for weight in weights:
    below += weight / total
    bounds.append(below)
  last = max(i for i, weight in enumerate(weights) if weight)
  share = jax.random.uniform(named(key, name), dtype=jnp.float32)
  index = (share >= jnp.asarray(bounds, jnp.float32)).sum(dtype=jnp.int32)
  return jnp.minimum(index, last)


def around_one(key: Array, name: str, limits: Sequence[float]) -> Array:
  """Draws a shape: below 1 as often as above, each side uniformly.

  Args:
    key: As of `named`.
    name: As of `named`.
    limits: The least and the most.

  Source: BasicSR `data/degradations.py`, of betas.

  >>> 0.5 <= float(around_one(jax.random.key(0), "beta", (0.5, 4.0))) <= 4
  True
  """
  below = between(key, f"{name}, below", limits[0], 1.0)
  above = between(key, f"{name}, above", 1.0, limits[1])
  return jnp.where(happens(key, f"{name}, side", 0.5), below, above)
