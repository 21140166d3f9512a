"""Unsharp masking, as Real-ESRGAN sharpens its targets."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from esrgan_jax import checks
from esrgan_jax.ops import axes

_BLOCK = 128  # Outputs a matrix product.


def usm_sharpen(
  images: Array, weight: float = 0.5, radius: int = 50, threshold: float = 10
) -> Array:
  """Returns images sharpened where they have edges.

  An image's difference to its blur is added to it, in part, where it is larger
  than a threshold; what says where is blurred as well.

  Args:
    images: Float `[..., H, W, 3]` in [0, 1], of a side of half of `radius` and
      one more at least.
    weight: How much of the difference is added.
    radius: Pixels a side of the blur's kernel, of which an even number is one
      more; its deviation is 0.15 of it, and 0.35 more, as OpenCV has it.
    threshold: The least difference of an edge, in levels of 255.

  Returns:
    Images of the same shape and dtype, in [0, 1].

  Raises:
    TypeError: If they are no float array.
    ValueError: If they have another shape or are too small, or `radius` isn't
      a whole number above 0.

  Source: BasicSR `utils/img_process_util.py::USMSharp`.

  >>> edge = jnp.linspace(0.2, 0.8, 64).round()[None, :, None] * 0.5 + 0.25
  >>> edge = jnp.broadcast_to(edge, (64, 64, 3))
  >>> sharp = usm_sharpen(edge)
  >>> float(sharp.min()) < 0.2, float(sharp.max()) > 0.8
  (True, True)
  """
  images = checks.check_images(images, "images", channels=3)
  whole = isinstance(radius, int | np.integer) and not isinstance(radius, bool)
  if not whole or radius < 1:
    raise ValueError(f"radius must be a whole number above 0, got {radius!r}")
  side = int(radius) + (radius % 2 == 0)
  if min(images.shape[-3:-1]) <= side // 2:
    raise ValueError(
      f"images are {images.shape[-3]}x{images.shape[-2]}; with a radius of"
      f" {radius} they must be {side // 2 + 1} pixels a side, or more: give a"
      " smaller radius"
    )
  run = functools.partial(
    _sharpen, weight=weight, side=side, threshold=threshold
  )
  return axes.anywhere(run, images)


def _sharpen(images, *, weight, side, threshold):
  dtype = images.dtype
  # [..., C, H, W]: channels last are padded to 128 on a TPU.
  planes = jnp.moveaxis(images, -1, -3).astype(jnp.float32)
  residual = planes - _blur(planes, side)
  edges = (abs(residual) * 255 > threshold).astype(jnp.float32)
  share = _blur(edges, side)
  sharp = jnp.clip(planes + weight * residual, 0, 1)
  planes = share * sharp + (1 - share) * planes
  return jnp.moveaxis(planes, -3, -1).astype(dtype)


def _blur(planes, side):
  """Blurred by a Gaussian, borders mirrored, an axis after the other."""
  for axis in (-2, -1):
    planes = _blur_axis(planes, axis, side)
  return planes


def _blur_axis(planes, axis, side):
  """Products with a band, in blocks: their cost grows with the axis."""
  length = planes.shape[axis]
  margin = side // 2
  block = min(_BLOCK, length)
  count = -(-length // block)
  padding = [(0, 0)] * planes.ndim
  padding[axis] = (margin, margin)
  planes = jnp.pad(planes, padding, mode="reflect")
  padding[axis] = (0, count * block - length)
  planes = jnp.pad(planes, padding)
  band = _band(side, block)
  equation = {-2: "ow,...wx->...ox", -1: "...xw,ow->...xo"}[axis]
  blurred = []
  for begin in range(0, count * block, block):
    part = lax.slice_in_dim(
      planes, begin, begin + block + side - 1, axis=planes.ndim + axis
    )
    operands = (band, part) if axis == -2 else (part, band)
    blurred.append(
      jnp.einsum(equation, *operands, precision=lax.Precision.HIGHEST)
    )
  blurred = jnp.concatenate(blurred, axis=axis)
  return lax.slice_in_dim(blurred, 0, length, axis=blurred.ndim + axis)


@functools.lru_cache(maxsize=16)
def _band(side, block):
  """A Gaussian's taps, moved on by one from row to row: `[block, window]`."""
  sigma = 0.3 * ((side - 1) * 0.5 - 1) + 0.8
  steps = np.arange(side) - side // 2
  taps = np.exp(-0.5 * np.square(steps / sigma))
  band = np.zeros((block, block + side - 1))
  for row in range(block):
    band[row, row : row + side] = taps / taps.sum()
  return band.astype(np.float32)
