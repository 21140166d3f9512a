"""HR images alone: what LR is made of them, and how."""

from __future__ import annotations

import abc

import numpy as np

from esrgan_jax import images, text
from esrgan_jax.data.sources.base import DataError, Pair, Source, corner
from esrgan_jax.resize import imresize_uint8

__all__ = ["UNMADE", "Shrunk", "to_rgb8"]

# In the place of a border: nobody looks at LR, which is every `scale`-th pixel.
UNMADE = "unmade"


class Shrunk(Source):
  """A source of HR images; LR is made from them.

  HR is cropped at the right and bottom to a multiple of `scale`; LR is
  MATLAB's bicubic of it, by `esrgan_jax.resize.imresize_uint8`.

  Attributes:
    border: `"mirror"` or `"clamp"`, see `imresize_uint8`; or `UNMADE`.
  """

  border: str

  @property
  def lr_origin(self) -> str:
    """Where LR comes from, for reports."""
    if self.border == UNMADE:
      return "made inside the step"
    return f"made by bicubic imresize ({self.border})"

  @abc.abstractmethod
  def read_hr(self, index: int) -> np.ndarray:
    """Reads uint8 `[H, W, 3]`. Raises `DataError` if it cannot be used."""

  def __getitem__(self, index: int) -> Pair:
    hr = self._whole_hr(index)
    return Pair(self._make_lr(hr), hr)

  def lr_size(self, index: int) -> tuple[int, int]:
    """As `Source.lr_size`; makes no LR."""
    H, W, _ = self._whole_hr(index).shape
    return H // self.scale, W // self.scale

  def crop(self, index: int, place: tuple[float, float], size: int) -> Pair:
    """As `Source.crop`; shrinks no more of HR than the crop's LR depends on."""
    hr = self._whole_hr(index)
    k = self.scale
    whole = (hr.shape[0] // k, hr.shape[1] // k)
    starts = corner(whole, place, size, self.names[index])
    # A cubic kernel reaches two LR pixels beyond its own: with four around,
    # the crop's LR equals the whole image's to the last bit.
    begins = [max(start - 4, 0) for start in starts]
    ends = [
      min(start + size + 4, n) for start, n in zip(starts, whole, strict=True)
    ]
    rows, columns = (
      slice(k * b, k * e) for b, e in zip(begins, ends, strict=True)
    )
    hr = hr[rows, columns]
    top, left = (s - b for s, b in zip(starts, begins, strict=True))
    return Pair(
      self._make_lr(hr)[top : top + size, left : left + size],
      hr[k * top : k * (top + size), k * left : k * (left + size)],
    )

  def _whole_hr(self, index):
    """Reads HR, cut to whole LR pixels."""
    hr = self.read_hr(index)
    H, W = (n - n % self.scale for n in hr.shape[:2])
    if min(H, W) < self.scale:
      raise DataError(
        f"{text.printable(self.names[index])}: {hr.shape[0]}x{hr.shape[1]} is"
        f" smaller than one LR pixel at scale {self.scale}"
      )
    return hr[:H, :W]

  def _make_lr(self, hr):
    if self.border == UNMADE:
      return hr[:: self.scale, :: self.scale]
    return imresize_uint8(hr, scale=1 / self.scale, border=self.border)


def to_rgb8(image: images.Image) -> np.ndarray:
  """Makes uint8 RGB of a picture: grey repeated, 16 bits rounded, no alpha.

  Colour under transparency stays; where nothing is seen, it is filled in from
  what is.

  Args:
    image: The picture.

  Returns:
    uint8 `[H, W, 3]`.

  >>> grey = images.Image(np.full((2, 3, 1), 65_535, np.uint16))
  >>> to_rgb8(grey).shape, int(to_rgb8(grey).min())
  ((2, 3, 3), 255)
  """
  pixels = image.pixels
  if image.alpha is not None:
    pixels = images.bleed_colour(pixels, image.alpha)
  if pixels.dtype != np.uint8:
    pixels = images.from_float(images.to_float(pixels), np.uint8)
  if pixels.shape[2] == 1:
    pixels = np.repeat(pixels, 3, axis=2)
  return np.ascontiguousarray(pixels)
