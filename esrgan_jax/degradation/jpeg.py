"""JPEG's losses, as libjpeg makes them: 4:2:0, its tables, its roundings.

What is compressed without loss in a file is left out. Whole numbers are those
of libjpeg, in float32, which holds all of them exactly. Its cosine transforms
have constants of 13 bits, and those here don't: where a coefficient falls on
the other side of a half, a block is another by a level or two.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from esrgan_jax.degradation.resizing import repeat_edges

_SIDE = 8  # Pixels of a block.
_UNIT = 16  # Pixels that a block of colour is made of.
# Blocks whose transforms are one product: as wide as a TPU's matrix unit, and
# on a CPU, whose products are of all of it, no wider than pays.
_TOGETHER = 4

_ROUNDING = 1e-3  # More than that of float32; halves are still halves.
_UNSCALED = 8**0.5  # By which libjpeg's transforms of an axis are larger.

# The tables of the standard's annex K, of quality 50.
_BRIGHTNESS = np.array(
  [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
  ]
)
_COLOR = np.full((8, 8), 99)
_COLOR[:4, :4] = [
  [17, 18, 24, 47],
  [18, 21, 26, 66],
  [24, 26, 56, 99],
  [47, 66, 99, 99],
]


def jpeg(
  planes: Array,
  quality: Array,
  size: tuple[Array, Array] | None = None,
) -> Array:
  """Returns what a JPEG file makes of an image.

  Args:
    planes: Red, green and blue, float `[3, H, W]` in [0, 1]; rounded to 256
      levels.
    quality: From 1 to 100, rounded to a whole number; may be traced.
    size: Rows and columns of an image at the upper left, traced; None if it is
      all of it.

  Returns:
    `[3, H, W]` of 256 levels; what lies beside the image is of no use.

  Source: libjpeg-turbo; ITU-T T.81.

  >>> import jax
  >>> grey = jnp.full((3, 5, 9), 0.5)
  >>> float(abs(jax.jit(jpeg)(grey, 30.0) - 128 / 255).max()) < 1e-6
  True
  """
  height, width = planes.shape[1:]
  rows, columns = size or (height, width)
  padding = ((0, 0), (0, -height % _UNIT), (0, -width % _UNIT))
  planes = jnp.round(jnp.clip(planes, 0, 1) * 255)
  planes = jnp.pad(planes, padding, mode="edge")
  planes = repeat_edges(planes, rows, columns)
  y, colors = _to_ycc(planes)
  y = _lossy(y, quality_table(_BRIGHTNESS, quality))
  colors = _lossy(_halved(colors), quality_table(_COLOR, quality))
  # As many as there are of half of the pixels, the last ones repeated.
  colors = repeat_edges(colors, (rows + 1) // 2, (columns + 1) // 2)
  planes = _to_rgb(y, _doubled(colors))
  return planes[:, :height, :width] / 255


def quality_table(table: np.ndarray, quality: Array) -> Array:
  """Returns the steps of a table at a quality, as libjpeg does.

  Args:
    table: `[8, 8]`, of quality 50.
    quality: From 1 to 100, traced; rounded.

  >>> quality_table(np.full((8, 8), 16), 90)[0, 0].item()
  3.0
  """
  quality = jnp.clip(jnp.round(jnp.asarray(quality, jnp.float32)), 1, 100)
  # Whole divisions; 1e-3 for those without a rest that come out below.
  percent = jnp.where(
    quality < 50, jnp.floor(5000 / quality + 1e-3), 200 - 2 * quality
  )
  steps = jnp.asarray(table, jnp.float32) * percent + 50
  return jnp.clip(jnp.floor(steps / 100 + 1e-3), 1, 255)


def _to_ycc(planes):
  """Brightness `[1, H, W]` and colours `[2, H, W]`, in 1 / 65536 as libjpeg."""
  r, g, b = planes
  y = 19595 * r + 38470 * g + 7471 * b + 32768
  half = 128 * 65536 + 32767
  cb = 32768 * b - 11059 * r - 21709 * g + half
  cr = 32768 * r - 27439 * g - 5329 * b + half
  return jnp.floor(y / 65536)[None], jnp.floor(jnp.stack([cb, cr]) / 65536)


def _to_rgb(y, colors):
  y, (cb, cr) = y[0], colors - 128
  red = y + jnp.floor((91881 * cr + 32768) / 65536)
  green = y + jnp.floor((32768 - 22554 * cb - 46802 * cr) / 65536)
  blue = y + jnp.floor((116130 * cb + 32768) / 65536)
  return jnp.clip(jnp.stack([red, green, blue]), 0, 255)


def _halved(planes):
  """Means of 2 x 2; halves are rounded up in every second column."""
  _, height, width = planes.shape
  four = planes.reshape(-1, height // 2, 2, width // 2, 2).sum(axis=(2, 4))
  bias = 1 + jnp.arange(width // 2) % 2
  return jnp.floor((four + bias[None, None].astype(planes.dtype)) / 4)


def _doubled(planes):
  """Twice the size: of the two nearest an axis, 3/4 and 1/4."""
  channels, height, width = planes.shape
  above = jnp.concatenate([planes[:, :1], planes[:, :-1]], axis=1)
  below = jnp.concatenate([planes[:, 1:], planes[:, -1:]], axis=1)
  rows = jnp.stack([3 * planes + above, 3 * planes + below], axis=2)
  rows = rows.reshape(channels, 2 * height, width)
  before = jnp.concatenate([rows[..., :1], rows[..., :-1]], axis=2)
  after = jnp.concatenate([rows[..., 1:], rows[..., -1:]], axis=2)
  columns = jnp.stack([3 * rows + before + 8, 3 * rows + after + 7], axis=3)
  columns = jnp.floor(columns / 16)
  return columns.reshape(channels, 2 * height, 2 * width)


def _lossy(planes, steps):
  """What is left of planes after their coefficients have been rounded.

  libjpeg's transforms keep two bits of a fraction after their first axis, and
  three of a coefficient.
  """
  channels, height, width = planes.shape
  blocks = (channels, height // _SIDE, _SIDE, width // _SIDE, _SIDE)
  steps = steps[None, None, :, None, :]
  planes = _rounded(4 * _UNSCALED * _transform(planes - 128, 2))
  planes = _rounded(_UNSCALED / 4 * _transform(planes, 1))
  ratios = planes.reshape(blocks) / (8 * steps)
  # Halves, which flat blocks are full of, away from 0.
  whole = jnp.sign(ratios) * _rounded(abs(ratios))
  planes = (whole * steps).reshape(planes.shape)
  planes = _rounded(4 * _UNSCALED * _transform(planes, 1, inverse=True))
  planes = _rounded(_UNSCALED / 32 * _transform(planes, 2, inverse=True))
  return jnp.clip(planes + 128, 0, 255)


def _rounded(x):
  """Halves up, also those that float32 has next to a half."""
  return jnp.floor(x + (0.5 + _ROUNDING))


def _transform(planes, axis, *, inverse=False):
  """Cosine transforms of all blocks of 8 along an axis, or back."""
  channels, height, width = planes.shape
  together = _TOGETHER
  while planes.shape[axis] % (together * _SIDE):
    together //= 2
  matrix = np.kron(np.eye(together), _cosines()).astype(np.float32)
  if inverse:
    matrix = matrix.T
  side = together * _SIDE
  precision = lax.Precision.HIGHEST
  if axis == 1:
    parts = planes.reshape(channels, height // side, side, width)
    parts = jnp.einsum("ui,cniw->cnuw", matrix, parts, precision=precision)
  else:
    parts = planes.reshape(channels, height, width // side, side)
    parts = jnp.einsum("chni,ui->chnu", parts, matrix, precision=precision)
  return parts.reshape(planes.shape)


def _cosines():
  """The orthonormal cosine transform of 8: a row a frequency."""
  index = np.arange(_SIDE)
  angles = (2 * index[None] + 1) * index[:, None] * np.pi / (2 * _SIDE)
  first = np.where(index == 0, np.sqrt(1 / _SIDE), np.sqrt(2 / _SIDE))
  return np.cos(angles) * first[:, None]
