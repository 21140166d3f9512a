"""Zeros around images that are smaller than their array.

A convolution pads with zeros. Where each of its inputs is zero beyond an
image's own rows and columns, it computes there what it computes at the border
of an image that ends: so images of many sizes share a program, exactly.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def inside(x: Array, size: Array) -> Array:
  """Returns which pixels are an image's own.

  Args:
    x: `[N, H, W, C]`.
    size: Rows and columns of each image, integers `[N, 2]`.

  Returns:
    `[N, H, W, 1]`, bool.

  >>> inside(jnp.zeros((1, 2, 2, 3)), jnp.array([[1, 2]]))[0, :, :, 0].tolist()
  [[True, True], [False, False]]
  """
  rows = jnp.arange(x.shape[1]).reshape(1, -1, 1, 1)
  columns = jnp.arange(x.shape[2]).reshape(1, 1, -1, 1)
  height, width = size.reshape(-1, 2, 1, 1, 1).swapaxes(0, 1)
  return (rows < height) & (columns < width)


def cut(x: Array, size: Array | None) -> Array:
  """Returns images with zeros beyond their own rows and columns.

  Args:
    x: `[N, H, W, C]`.
    size: As of `inside`; None changes nothing.

  >>> cut(jnp.ones((1, 2, 2, 1)), jnp.array([[1, 2]])).ravel().tolist()
  [1.0, 1.0, 0.0, 0.0]
  """
  return x if size is None else jnp.where(inside(x, size), x, 0)


def one_batch(
  x: Array, valid: Array | None
) -> tuple[Array, Array | None, list[int]]:
  """Makes one batch axis of all of an image's, and of its mask's.

  Args:
    x: `[..., H, W, C]`.
    valid: `[..., H, W, 1]`, 1 inside an image and 0 outside, or None.

  Returns:
    `[N, H, W, C]`, the mask of its dtype, and the axes that N stands for.

  >>> x, valid, batch = one_batch(jnp.ones((2, 3, 4, 4, 1)), None)
  >>> x.shape, batch
  ((6, 4, 4, 1), [2, 3])
  """
  *batch, h, w, c = x.shape
  if valid is not None:
    valid = jnp.broadcast_to(valid, (*batch, h, w, 1)).reshape(-1, h, w, 1)
    valid = valid.astype(x.dtype)
  return x.reshape(-1, h, w, c), valid, batch
