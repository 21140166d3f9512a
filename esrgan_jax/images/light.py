"""Floats: linear light, a display's values, and how bright white is.

Networks know pictures as displays show them, in [0, 1]. Files of floats, such
as OpenEXR, hold light itself, and go beyond white. So what is read goes through
sRGB's curve, continued above 1 and odd below 0, and, where it is much above 1,
is divided by a gain. Both stand in `Metadata`, and are undone by the writer.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from esrgan_jax.images.pixels import Image, ImageError, Metadata, bands, opaque

# Brighter parts than this may stay above 1: lamps, and the sun.
_HIGHLIGHTS = 0.001
# White of floats that aren't linear, where their values come near to it.
_WHITES = (255.0, 65_535.0)
# Of values that leave [0, 1] by less, nobody need be told.
_VISIBLE = 1 / 255
_SAMPLED = 2**20
# A display's value whose light, and twice as much, halves can hold.
_MOST_OF_HALVES = 64


def to_display(light: np.ndarray) -> np.ndarray:
  """Returns linear light as a display's values, by sRGB's curve.

  Args:
    light: Floats, any shape; any sign and size.

  Returns:
    float32 of the same shape.

  >>> to_display(np.array([0, 0.2140411, 1, -1])).round(2).tolist()
  [0.0, 0.5, 1.0, -1.0]
  """
  light = np.asarray(light, np.float32)
  size = np.abs(light)
  curved = np.float32(1.055) * size ** np.float32(1 / 2.4) - np.float32(0.055)
  curved = np.where(size > 0.0031308, curved, np.float32(12.92) * size)
  return np.copysign(curved, light)


def to_light(display: np.ndarray) -> np.ndarray:
  """Returns a display's values as linear light: undoes `to_display`.

  Args:
    display: Floats, any shape; any sign and size.

  Returns:
    float32 of the same shape.

  >>> to_light(np.array([0, 1, -1])).tolist()
  [0.0, 1.0, -1.0]
  """
  display = np.asarray(display, np.float32)
  size = np.abs(display)
  light = ((size + np.float32(0.055)) / np.float32(1.055)) ** np.float32(2.4)
  light = np.where(size > 0.04045, light, size / np.float32(12.92))
  return np.copysign(light, display)


def check_finite(samples: np.ndarray) -> None:
  """Refuses NaN and infinity, and says how many there are."""
  found = sum(
    int(np.size(samples[rows]) - np.isfinite(samples[rows]).sum())
    for rows in bands(samples)
  )
  if found:
    raise ImageError(
      f"{found} of {samples.size} values are NaN or infinite; repair them in"
      " the program that made the file"
    )


def from_file(
  pixels: np.ndarray, *, linear: bool
) -> tuple[np.ndarray, dict[str, float]]:
  """Makes a display's values of a file's floats.

  Args:
    pixels: float32 `[H, W, C]`, finite.
    linear: Whether they are linear light.

  Returns:
    float32 `[H, W, C]`, mostly in [0, 1], and `Metadata`'s `linear`, `gain`
    and `white`.
  """
  out = np.empty(pixels.shape, np.float32)
  for rows in bands(out):
    out[rows] = to_display(pixels[rows]) if linear else pixels[rows]
  values = out.reshape(-1)[:: sampling(out.size)]
  levels = levels_of(values, linear=linear)
  divide(out, levels)
  return out, levels


def levels_of(values: np.ndarray, *, linear: bool) -> dict[str, float]:
  """Returns `Metadata`'s `linear`, `gain` and `white` of a display's values.

  Args:
    values: Some of those of all pixels, every `sampling`th.
    linear: Whether they were linear light.
  """
  white = 1.0
  # What all but the brightest stay below.
  brightest = float(np.quantile(values, 1 - _HIGHLIGHTS, method="lower"))
  if not linear and brightest > 1.5:
    near = (w for w in _WHITES if w / 2 < brightest <= 1.5 * w)
    white = next(near, brightest)
    brightest /= white
  return {"linear": linear, "gain": max(1.0, brightest), "white": white}


def divide(pixels: np.ndarray, levels: dict[str, float]) -> None:
  """Divides pixels, in place, so that they lie in about [0, 1]."""
  factor = levels["white"] * levels["gain"]
  if factor != 1:
    for rows in bands(pixels):
      pixels[rows] /= np.float32(factor)


def sampling(size: int) -> int:
  """Returns of how many values one is looked at."""
  return max(1, size // _SAMPLED)


def to_file(
  pixels: np.ndarray, metadata: Metadata, *, linear: bool
) -> np.ndarray:
  """Undoes `from_file`, of a part.

  Args:
    pixels: uint8, uint16 or float32.
    metadata: Says what was done to floats; of integers, it doesn't matter.
    linear: Whether the file is to have linear light.

  Returns:
    float32 of the same shape.
  """
  if pixels.dtype != np.float32:
    shown = pixels / np.float32(np.iinfo(pixels.dtype).max)
    return to_light(shown) if linear else shown
  white = metadata.white
  if linear and white in _WHITES:
    white = 1.0  # Of another scale, where light has 1.
  shown = pixels * np.float32(metadata.gain * white)
  return to_light(shown) if linear else shown


def scale_notes(metadata: Metadata, *, floats: bool) -> tuple[str, ...]:
  """Tells by what floats were divided, where the file can't undo it.

  Args:
    metadata: Of the floats.
    floats: Whether the file has floats, of linear light.
  """
  white = metadata.white
  if white == 1 or (floats and white not in _WHITES):
    return ()
  what = "white" if white in _WHITES else "about its brightest, to be white"
  return (f"its values were divided by {white:.6g}, {what}; .tif keeps them",)


def fits_half(metadata: Metadata) -> bool:
  """Tells whether light of floats that were halves stays below their end."""
  return metadata.gain * metadata.white <= _MOST_OF_HALVES or (
    metadata.linear or metadata.white in _WHITES
  )


def share(alpha: np.ndarray) -> np.ndarray:
  """Returns alpha as floats, 1 where nothing shines through."""
  return alpha.astype(np.float32) / np.float32(opaque(alpha.dtype))


def as_kind(samples: np.ndarray, kind: np.dtype) -> np.ndarray:
  """Returns floats as float32 or float16, which ends at 65,504.

  Raises:
    ImageError: If a value is not finite.
  """
  check_finite(samples)
  if kind.itemsize == 2:
    top = np.finfo(np.float16).max
    samples = np.clip(samples, -top, top)
  return samples.astype(kind)


def shown_integers(pixels: np.ndarray) -> np.ndarray:
  """Returns integers of linear light as a display shows them.

  Args:
    pixels: uint8 or uint16.
  """
  top = np.float32(np.iinfo(pixels.dtype).max)
  out = np.empty_like(pixels)
  for rows in bands(pixels):
    out[rows] = np.rint(to_display(pixels[rows] / top) * top)
  return out


def light_integers(pixels: np.ndarray) -> np.ndarray:
  """Undoes `shown_integers`."""
  top = np.float32(np.iinfo(pixels.dtype).max)
  out = np.empty_like(pixels)
  for rows in bands(pixels):
    out[rows] = np.rint(to_light(pixels[rows] / top) * top)
  return out


def to_integers(image: Image, dtype: type) -> Image:
  """Makes integers of an image of floats, as a display shows it.

  Args:
    image: Of float32.
    dtype: `np.uint8` or `np.uint16`.

  Returns:
    The image, clipped and rounded, with a note if that can be seen.

  Raises:
    ImageError: If a value is not finite.
  """
  top, gain = np.float32(np.iinfo(dtype).max), np.float32(image.metadata.gain)

  def convert(
    array: np.ndarray | None, factor: np.float32
  ) -> tuple[np.ndarray | None, int]:
    if array is None:
      return None, 0
    check_finite(array)
    out, clipped = np.empty(array.shape, dtype), 0
    for rows in bands(array):
      part = array[rows] * factor
      clipped += int(((part > 1 + _VISIBLE) | (part < -_VISIBLE)).sum())
      out[rows] = np.rint(np.clip(part, 0, 1) * top)
    return out, clipped

  pixels, clipped = convert(image.pixels, gain)
  notes = image.notes
  if clipped:
    notes = (
      *notes,
      f"{clipped} of {pixels.size} values brighter than white or darker than"
      " black were clipped, which .exr and .tif would keep",
    )
  one = np.float32(1)
  return dataclasses.replace(
    image,
    pixels=pixels,
    alpha=convert(image.alpha, one)[0],
    extra=convert(image.extra, one)[0],
    metadata=dataclasses.replace(
      image.metadata, linear=False, gain=1.0, white=1.0, bits=None
    ),
    notes=notes,
  )
