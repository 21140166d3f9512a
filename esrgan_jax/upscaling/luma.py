"""Colour for networks of one channel: they get luma, as is usual.

The other two components are enlarged by a bicubic filter, of which nobody sees
much: Dong et al., "Image Super-Resolution Using Deep Convolutional Networks"
(2015), section 4.1.
"""

from __future__ import annotations

import numpy as np
from PIL import Image as PilImage

from esrgan_jax.upscaling.seamless import widen_for_resize

__all__ = ["of", "put"]

# BT.601, full range, as of JPEG.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def of(pixels: np.ndarray) -> np.ndarray:
  """Returns the luma of an image.

  Args:
    pixels: uint8, uint16 or float32 `[H, W, 3]`.

  Returns:
    float32 `[H, W, 1]`, in [0, 1] for integers.

  >>> of(np.full((1, 1, 3), 255, np.uint8)).round(3).tolist()
  [[[1.0]]]
  """
  return (pixels @ _LUMA)[..., None] / np.float32(_levels(pixels.dtype))


def put(
  luma: np.ndarray, pixels: np.ndarray, *, seamless: str | None = None
) -> np.ndarray:
  """Gives a larger luma the colours of an image.

  Args:
    luma: float32 `[h, w, 1]`, as of `of`.
    pixels: Of the smaller image, `[H, W, 3]`.
    seamless: Which edges meet, one of `seamless.DIRECTIONS`; None for none.

  Returns:
    `[h, w, 3]` of the dtype of `pixels`; integers are rounded and clipped.

  >>> pixels = np.full((2, 2, 3), (200, 100, 50), np.uint8)
  >>> put(of(pixels).repeat(2, 0).repeat(2, 1), pixels)[3, 3].tolist()
  [200, 100, 50]
  """
  levels = _levels(pixels.dtype)
  size = luma.shape[1::-1]
  result = np.empty((*luma.shape[:2], 3), pixels.dtype)
  pixels, box = widen_for_resize(pixels, luma.shape[:2], seamless)
  below = pixels @ _LUMA
  for channel in range(3):
    # What a channel has beyond luma: no step to the components and back.
    beyond = PilImage.fromarray(pixels[..., channel] - below)
    plane = np.asarray(beyond.resize(size, PilImage.Resampling.BICUBIC, box))
    plane = plane + luma[..., 0] * levels
    if pixels.dtype.kind != "f":
      plane = np.clip(np.rint(plane), 0, levels)
    result[..., channel] = plane
  return result


def _levels(dtype: np.dtype) -> int:
  return 1 if dtype.kind == "f" else np.iinfo(dtype).max
