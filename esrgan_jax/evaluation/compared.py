"""A result beside its ground truth, and what several measures need of them.

Squared errors and SSIM are summed block by block, so that a few programs do for
images of all sizes; sums of blocks are kept in float64.
"""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from esrgan_jax import metrics

__all__ = ["WINDOW", "Compared"]

WINDOW = 11  # SSIM's windows are 11x11.
_OVERLAP = WINDOW - 1
_BLOCKS = (64, 128, 256)  # The smallest that holds an image, or the largest.
# What is taken on a patch, such as VGG's distance, is taken on the centre: one
# program for all images that are larger, at a bounded cost.
_PATCH = 256


class Compared:
  """A result and its ground truth, and what several measures need of them.

  Args:
    sr: Super-resolved image, uint8 `[H, W, 3]`.
    hr: Ground truth, likewise.
    crop_border: Pixels to cut off each side, >= 0; papers cut `scale` pixels.

  Attributes:
    sr: Without its border.
    hr: Without its border.
    images: Both with their borders.
    patch: The centres of the whole images, float32 `[1, H, W, 3]` in [0, 1],
      at most 256x256.

  Raises:
    ValueError: If the images are not uint8, differ in shape, or fewer than
      11x11 pixels are left.

  >>> hr = np.zeros((30, 20, 3), np.uint8)
  >>> Compared(hr, hr, crop_border=4).sr.shape
  (22, 12, 3)
  """

  def __init__(self, sr: np.ndarray, hr: np.ndarray, *, crop_border: int):
    for name, image in (("sr", sr), ("hr", hr)):
      if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(
          f"{name} must be uint8 [H, W, 3], got {image.dtype} {image.shape}"
        )
    if sr.shape != hr.shape:
      raise ValueError(
        f"the result is {sr.shape[0]}x{sr.shape[1]}, the ground truth"
        f" {hr.shape[0]}x{hr.shape[1]}"
      )
    if crop_border < 0:
      raise ValueError(f"crop_border must be >= 0, got {crop_border}")
    height, width = (n - 2 * crop_border for n in hr.shape[:2])
    if min(height, width) < WINDOW:
      raise ValueError(
        f"crop_border {crop_border} leaves {max(height, 0)}x{max(width, 0)} of"
        f" {hr.shape[0]}x{hr.shape[1]} pixels; at least {WINDOW}x{WINDOW} are"
        " needed"
      )
    inner = (
      slice(crop_border, crop_border + height),
      slice(crop_border, crop_border + width),
    )
    self.sr, self.hr = sr[inner], hr[inner]
    self.images = sr, hr

  @functools.cached_property
  def patch(self) -> tuple[np.ndarray, np.ndarray]:
    """See the class."""
    sr, hr = map(_centre, self.images)
    return sr, hr

  @functools.cached_property
  def errors(self) -> np.ndarray:
    """Mean squared errors of R, G, B and Y, images from 0 to 1."""
    height, width, _ = self.hr.shape
    return self._sums[0] / (height * width)

  @functools.cached_property
  def similarities(self) -> np.ndarray:
    """SSIM of R, G, B and Y."""
    height, width, _ = self.hr.shape
    return 1 - self._sums[1] / ((height - _OVERLAP) * (width - _OVERLAP))

  @functools.cached_property
  def _sums(self):
    height, width, _ = self.hr.shape
    total = np.zeros((2, 4))
    length = min(max(height, width), _BLOCKS[-1])
    side = next(side for side in _BLOCKS if side >= length)
    corners = itertools.product(range(0, height, side), range(0, width, side))
    for top, left in corners:
      size = side + _OVERLAP
      block = np.zeros((2, size, size, 3), np.uint8)
      for i, image in enumerate((self.sr, self.hr)):
        part = image[top : top + size, left : left + size]
        block[i, : part.shape[0], : part.shape[1]] = part
      inside = np.array([height - top, width - left], np.int32)
      total += np.asarray(_block_sums(block, inside), np.float64)
    return total


def _centre(image: np.ndarray) -> np.ndarray:
  """Returns the middle of a uint8 image, as float32 `[1, H, W, 3]`."""
  for axis in (0, 1):
    size = min(image.shape[axis], _PATCH)
    start = (image.shape[axis] - size) // 2
    image = np.take(image, range(start, start + size), axis=axis)
  return image[None].astype(np.float32) / np.float32(255)


@jax.jit
def _block_sums(block: jax.Array, inside: jax.Array) -> jax.Array:
  """Sums squared errors, and what SSIM lacks of 1, over a block's own pixels.

  `block` is sr and hr, `inside` the rows and columns that the image has left
  from the block's corner. Returns `[2, 4]`: R, G, B, Y.
  """
  side = block.shape[1] - _OVERLAP
  rgb = block.astype(jnp.float32) / 255
  sr, hr = jnp.concatenate([rgb, metrics.rgb_to_y(rgb)], axis=-1)

  def own(values: jax.Array, limit: jax.Array) -> jax.Array:
    # Beyond the block's own pixels begins the next block, or nothing.
    values = values[:side, :side]
    rows = jnp.arange(side).reshape(-1, 1, 1) < limit[0]
    columns = jnp.arange(side).reshape(1, -1, 1) < limit[1]
    return jnp.where(rows & columns, values, 0).sum(axis=0).sum(axis=0)

  errors = own(jnp.square(sr - hr), inside)
  lacking = own(1 - metrics.ssim_map(sr, hr), inside - _OVERLAP)
  return jnp.stack([errors, lacking])
