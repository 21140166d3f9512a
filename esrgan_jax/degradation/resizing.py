"""Images resized to sizes that are traced, inside of arrays that are not.

An axis is a matrix of weights, `[out_length, in_length]`, of which the image's
own size takes the upper left corner. Rows below it repeat its last one, so that
what lies beside an image repeats its last pixels.

PyTorch's `interpolate` is what Real-ESRGAN resizes with: `bilinear` and
`bicubic` look at 2 and 4 pixels an axis, however small the result, and `area`
is the mean of all.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

MODES = ("area", "bilinear", "bicubic")
_CUBIC = -0.75  # PyTorch's and OpenCV's; MATLAB's is -0.5.


def axis_weights(
  mode: Array,
  in_size: Array,
  out_size: Array,
  *,
  in_length: int,
  out_length: int,
  step: Array | None = None,
) -> Array:
  """Returns what one axis of an image is made of.

  Args:
    mode: Index into `MODES`.
    in_size: Pixels of the image, from 1 to `in_length`.
    out_size: Pixels of the result, from 1 to `out_length`.
    in_length: Columns of the matrix.
    out_length: Rows of the matrix.
    step: Pixels of the image a pixel of the result, where that isn't
      `in_size / out_size`, as `out_size` was rounded. `area` goes by sizes.

  Returns:
    `[out_length, in_length]`, float32; rows sum to 1.

  Source: PyTorch `torch.nn.functional.interpolate`, `align_corners=False`.

  >>> axis_weights(0, 2, 1, in_length=3, out_length=2).tolist()
  [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]
  """
  in_size, out_size = jnp.asarray(in_size), jnp.asarray(out_size)
  row = jnp.minimum(jnp.arange(out_length), out_size - 1)
  if step is None:
    step = in_size.astype(jnp.float32) / out_size.astype(jnp.float32)
  return lax.cond(
    jnp.asarray(mode) == MODES.index("area"),
    lambda: _area(row, in_size, out_size, in_length),
    lambda: _taps(mode, row, in_size, step, in_length),
  )


def resize(planes: Array, rows: Array, columns: Array) -> Array:
  """Returns planes resized by the weights of their axes.

  Args:
    planes: Float `[C, H, W]`.
    rows: `[h, H]`, of `axis_weights`.
    columns: `[w, W]`.

  Returns:
    `[C, h, w]`.

  >>> half = axis_weights(0, 4, 2, in_length=4, out_length=2)
  >>> resize(jnp.arange(16.0).reshape(1, 4, 4), half, half).tolist()
  [[[2.5, 4.5], [10.5, 12.5]]]
  """
  # Three passes of bfloat16 on a TPU: errors are of 1e-5.
  precision = lax.Precision.HIGH
  planes = jnp.einsum("chw,yh->cyw", planes, rows, precision=precision)
  return jnp.einsum("cyw,xw->cyx", planes, columns, precision=precision)


def repeat_edges(planes: Array, height: Array, width: Array) -> Array:
  """Returns planes whose image repeats its last pixels around it.

  Args:
    planes: `[C, H, W]`; the image is at the upper left.
    height: Its rows, traced, from 1 to H.
    width: Its columns.

  >>> repeat_edges(jnp.arange(4.0).reshape(1, 1, 4), 1, 2).tolist()
  [[[0.0, 1.0, 1.0, 1.0]]]
  """
  for axis, size in ((1, height), (2, width)):
    last = lax.dynamic_slice_in_dim(planes, size - 1, 1, axis)
    shape = [1] * 3
    shape[axis] = -1
    index = jnp.arange(planes.shape[axis]).reshape(shape)
    planes = jnp.where(index < size, planes, last)
  return planes


def _area(row, in_size, out_size, in_length):
  """Means of all pixels that lie in a pixel of the result, even in part."""
  begin = row * in_size // out_size
  end = -(-(row + 1) * in_size // out_size)
  column = jnp.arange(in_length)
  inside = (column[None] >= begin[:, None]) & (column[None] < end[:, None])
  share = 1 / (end - begin).astype(jnp.float32)
  return jnp.where(inside, share[:, None], 0.0)


def _taps(mode, row, in_size, step, in_length):
  """Bilinear and bicubic: four pixels, of which bilinear uses two."""
  center = (row.astype(jnp.float32) + 0.5) * step - 0.5
  cubic = jnp.asarray(mode) == MODES.index("bicubic")
  last = (in_size - 1).astype(jnp.float32)
  center = jnp.where(cubic, center, jnp.clip(center, 0.0, last))
  first = jnp.floor(center)
  away = center - first
  column = jnp.arange(in_length)[None]
  weights = jnp.zeros((), jnp.float32)
  for tap in range(-1, 3):
    source = jnp.clip(first + tap, 0.0, last).astype(jnp.int32)
    distance = abs(away - tap)
    weight = jnp.where(cubic, _cubic(distance), jnp.maximum(1 - distance, 0.0))
    found = column == source[:, None]
    weights = weights + jnp.where(found, weight[:, None], 0.0)
  return weights


def _cubic(x):
  """Cubic convolution (Keys 1981)."""
  near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
  far = _CUBIC * (((x - 5) * x + 8) * x - 4)
  return jnp.where(x <= 1, near, jnp.where(x < 2, far, 0.0))
