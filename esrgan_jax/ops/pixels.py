"""Pixels moved into channels and back, repeated and interpolated.

Arrays are `[..., H, W, C]`.
"""

from __future__ import annotations

import functools
import math
import numbers

import jax
import jax.numpy as jnp
from jax import lax

from esrgan_jax import checks
from esrgan_jax.ops import axes

Array = jax.Array


def pixel_unshuffle(image: Array, *, factor: int) -> Array:
  """Moves each `factor` x `factor` block of pixels into channels.

  Args:
    image: `[..., H, W, C]`, with H and W multiples of `factor`.
    factor: Side of a block in pixels, >= 1.

  Returns:
    `[..., H / factor, W / factor, C * factor**2]`, channels in the order of
    PyTorch's `pixel_unshuffle`: `c * factor**2 + row * factor + column`.

  Raises:
    TypeError: If `image` is no array, or `factor` no whole number.
    ValueError: If H or W is not a multiple of `factor`, or `factor` below 1.

  >>> pixel_unshuffle(jnp.arange(8.0).reshape(2, 4, 1), factor=2).tolist()
  [[[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]]
  """
  image = checks.check_array(image, "image", "an array [..., H, W, C]")
  if image.ndim < 3:
    raise ValueError(f"image must be [..., H, W, C], got {image.shape}")
  checks.check_static(factor=factor)
  if not isinstance(factor, numbers.Integral):
    raise TypeError(f"factor must be a whole number, got {factor!r}")
  if factor < 1:
    raise ValueError(f"factor must be >= 1, got {factor}")
  h, w = image.shape[-3:-1]
  if h % factor or w % factor:
    raise ValueError(
      f"height {h} and width {w} must be multiples of {factor}: pad the image"
      " (esrgan_jax.Upscaler does this by itself)"
    )
  return axes.anywhere(functools.partial(_unshuffle, factor=factor), image)


def _unshuffle(image: Array, *, factor: int) -> Array:
  *batch, h, w, c = image.shape
  n = len(batch)
  x = image.reshape(*batch, h // factor, factor, w // factor, factor, c)
  x = x.transpose(*range(n), n, n + 2, n + 4, n + 1, n + 3)
  return x.reshape(*batch, h // factor, w // factor, c * factor**2)


def repeat_pixels(x: Array, factor: int) -> Array:
  """Nearest-neighbour upsampling as a broadcast: no gather, forward or back.

  Args:
    x: `[..., H, W, C]`.
    factor: Size of the result over that of `x`, >= 1.

  Returns:
    `[..., H * factor, W * factor, C]`.

  >>> repeat_pixels(jnp.array([[[1.0], [2.0]]]), 2)[..., 0].tolist()
  [[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]
  """
  *batch, h, w, c = x.shape
  x = x[..., :, None, :, None, :]
  x = jnp.broadcast_to(x, (*batch, h, factor, w, factor, c))
  return x.reshape(*batch, h * factor, w * factor, c)


def pixel_shuffle(x: Array, factor: int) -> Array:
  """Moves channels into blocks of pixels: undoes `pixel_unshuffle`.

  Args:
    x: `[..., H, W, C * factor**2]`, channels in the order of PyTorch's
      `pixel_shuffle`: `c * factor**2 + row * factor + column`.
    factor: Side of a block in pixels, >= 1.

  Returns:
    `[..., H * factor, W * factor, C]`.

  >>> pixel_shuffle(jnp.arange(4.0).reshape(1, 1, 4), 2)[..., 0].tolist()
  [[0.0, 1.0], [2.0, 3.0]]
  """
  *batch, h, w, c = x.shape
  n = len(batch)
  x = x.reshape(*batch, h, w, c // factor**2, factor, factor)
  x = x.transpose(*range(n), n, n + 3, n + 1, n + 4, n + 2)
  return x.reshape(*batch, h * factor, w * factor, c // factor**2)


def enlarge_linearly(
  x: Array, factor: int, valid: Array | None = None
) -> Array:
  """Bilinear upsampling, as PyTorch's `interpolate` without aligned corners.

  Args:
    x: `[..., H, W, C]`.
    factor: Size of the result over that of `x`, >= 1.
    valid: `[..., H, W, 1]`, 1 inside an image and 0 outside: a pixel at the
      border of an image stands in for those beyond it. None means all.

  Returns:
    `[..., H * factor, W * factor, C]`.

  >>> enlarge_linearly(jnp.array([[[0.0], [4.0]]]), 2)[..., 0].tolist()
  [[0.0, 1.0, 3.0, 4.0], [0.0, 1.0, 3.0, 4.0]]
  """
  for axis in (x.ndim - 3, x.ndim - 2):
    before, after = _neighbours(x, axis)
    if valid is not None:
      inside = valid.astype(bool)
      edge = jnp.zeros_like(lax.slice_in_dim(inside, 0, 1, axis=axis))
      has_before, has_after = _neighbours(inside, axis, edge)
      before = jnp.where(jnp.broadcast_to(has_before, x.shape), before, x)
      after = jnp.where(jnp.broadcast_to(has_after, x.shape), after, x)
    phases = []
    for phase in range(factor):
      offset = (phase + 0.5) / factor - 0.5
      other = before if offset < 0 else after
      phases.append((1 - abs(offset)) * x + abs(offset) * other)
    shape = list(x.shape)
    shape[axis] *= factor
    x = jnp.stack(phases, axis + 1).reshape(shape)
    if valid is not None:
      valid = jnp.repeat(valid, factor, axis)
  return x


def reduce_cubically(
  x: Array, *, block: int, size: int, valid: Array | None = None
) -> Array:
  """Makes `size` x `size` pixels of each block, by cubic interpolation.

  No low-pass filter comes before it: this is the resizing that programs of
  networks have (PyTorch's `interpolate`, ONNX, ncnn), with coefficient -0.75.
  Here it takes only the pixels next to a block besides its own.

  Args:
    x: `[..., H * block, W * block, C]`.
    block: Side of a block in pixels.
    size: Side of what becomes of it, from 1 to `block`.
    valid: `[..., H, W, 1]`, 1 where a block is inside an image and 0 outside: a
      pixel at the border stands in for those beyond it. None means all.

  Returns:
    `[..., H * size, W * size, C]`.

  >>> x = jnp.arange(8.0).reshape(1, 8, 1).repeat(4, axis=0)
  >>> reduce_cubically(x, block=4, size=2)[0, :, 0].tolist()
  [0.40625, 2.5, 4.5, 6.59375]
  """
  if size == block:
    return x
  rows, columns = x.ndim - 3, x.ndim - 2
  for axis, other, factor in ((rows, columns, block), (columns, rows, size)):
    inside = None
    if valid is not None:
      inside = jnp.repeat(valid.astype(bool), factor, other)
    x = _reduce_axis(x, axis, block, size, inside)
  return x


def _reduce_axis(x, axis, block, size, inside):
  count = x.shape[axis] // block
  shape = (*x.shape[:axis], count, block, *x.shape[axis + 1 :])
  blocks = x.reshape(shape)
  own = [
    lax.index_in_dim(blocks, i, axis + 1, keepdims=False) for i in range(block)
  ]
  # Beyond the border is the last pixel before it.
  first = lax.slice_in_dim(own[0], 0, 1, axis=axis)
  last = lax.slice_in_dim(own[-1], count - 1, count, axis=axis)
  before, _ = _neighbours(own[-1], axis, first)
  _, after = _neighbours(own[0], axis, last)
  if inside is not None:
    edge = jnp.zeros_like(lax.slice_in_dim(inside, 0, 1, axis=axis))
    has_before, has_after = (
      jnp.broadcast_to(each, before.shape)
      for each in _neighbours(inside, axis, edge)
    )
    before = jnp.where(has_before, before, own[0])
    after = jnp.where(has_after, after, own[-1])
  taps = [before, *own, after]
  reduced = [
    sum(weight * taps[tap] for tap, weight in made_of)
    for made_of in _cubic_taps(block, size)
  ]
  shape = (*x.shape[:axis], count * size, *x.shape[axis + 1 :])
  return jnp.stack(reduced, axis + 1).reshape(shape)


def _cubic_taps(block: int, size: int) -> list[list[tuple[int, float]]]:
  """Of each new pixel, which it is made of, counted from the one before."""
  found = []
  for pixel in range(size):
    place = (pixel + 0.5) * block / size + 0.5
    first = math.floor(place) - 1
    weights = [_cubic(abs(place - tap)) for tap in range(first, first + 4)]
    found.append(list(enumerate(weights, first)))
  return found


def _cubic(distance: float) -> float:
  if distance < 1:
    return (1.25 * distance - 2.25) * distance**2 + 1
  return -0.75 * (((distance - 5) * distance + 8) * distance - 4)


def _neighbours(
  x: Array, axis: int, edge: Array | None = None
) -> tuple[Array, Array]:
  """Each pixel's, before and after it; beyond the border are its own pixels."""
  size = x.shape[axis]
  first = lax.slice_in_dim(x, 0, 1, axis=axis)
  last = lax.slice_in_dim(x, size - 1, size, axis=axis)
  head = lax.slice_in_dim(x, 0, size - 1, axis=axis)
  tail = lax.slice_in_dim(x, 1, size, axis=axis)
  before = jnp.concatenate([first if edge is None else edge, head], axis)
  after = jnp.concatenate([tail, last if edge is None else edge], axis)
  return before, after
