"""Random keys of a batch's rows, which draw the same on any devices.

JAX's default generator, `threefry`, draws what its key says. Others, such as
`rbg`, draw other numbers where they are mapped over keys, or on other devices:
so a row's key is one of `threefry`, whatever it comes from.
"""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
from jax import Array


def as_threefry(key: Array) -> Array:
  """Returns a key of JAX's default generator that is a function of a key.

  Args:
    key: One key, of any implementation; one of `threefry` is returned as it is.

  >>> as_threefry(jax.random.key(0, impl="rbg")).dtype
  key<fry>
  """
  words = jax.random.key_data(key).reshape(-1)
  key = jax.random.wrap_key_data(words[:2], impl="threefry2x32")
  for word in words[2:]:
    key = jax.random.fold_in(key, word)
  return key


def of_rows(key: Array, count: int) -> Array:
  """Returns the keys of a batch's rows: each of the key and its number alone.

  Args:
    key: Of the batch, of any implementation.
    count: Rows.

  Returns:
    Keys of `threefry`, `[count]`.

  >>> two, three = (of_rows(jax.random.key(0), count) for count in (2, 3))
  >>> bool((two == three[:2]).all())
  True
  """
  key, rows = as_threefry(key), jnp.arange(count, dtype=jnp.uint32)
  return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def named(key: Array, name: str) -> Array:
  """Returns a key for something that has a name: no other name moves it.

  Args:
    key: The key.
    name: Any text.

  >>> key = jax.random.key(0)
  >>> bool(named(key, "blur") == named(key, "noise"))
  False
  """
  return jax.random.fold_in(key, zlib.crc32(name.encode()))
