"""What a picture is here: pixels, alpha, metadata; and numbers in [0, 1]."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

# Every phone and medium-format camera of today stays below (200 megapixels),
# and so does a 16384 x 16384 picture; decoded, it is at most 2 GiB.
MAX_PIXELS = 2**28

# Suffix -> format, for writing.
OUTPUT_SUFFIXES = {
  ".png": "PNG",
  ".jpg": "JPEG",
  ".jpeg": "JPEG",
  ".webp": "WEBP",
  ".tif": "TIFF",
  ".tiff": "TIFF",
  ".bmp": "BMP",
  ".tga": "TGA",
  ".ppm": "PPM",
  ".pgm": "PGM",
  ".pnm": "PNM",
  ".pam": "PAM",
  ".pfm": "PFM",
  ".qoi": "QOI",
  ".exr": "EXR",
  ".avif": "AVIF",
  ".jxl": "JXL",
  ".jp2": "JP2",
  ".j2k": "J2K",
}
# Likewise, of animations, by `write_frames`.
ANIMATION_SUFFIXES = {
  ".gif": "GIF",
  ".webp": "WEBP",
  ".png": "PNG",
  ".apng": "PNG",
}
# For choosing files in a folder: `read_image` itself goes by the content.
INPUT_SUFFIXES = frozenset(OUTPUT_SUFFIXES) | {
  ".apng",
  ".gif",
  ".heic",
  ".heif",
  ".hif",
  ".j2c",
  ".jfif",
  ".jpf",
  ".jpx",
  ".pbm",
}
# Of pixels.
DTYPES = (np.uint8, np.uint16, np.float32)


class ImageError(ValueError):
  """An image file that cannot be read or written; the message is one line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metadata:
  """What a file says about its picture, apart from the pixels.

  Attributes:
    format: Format of the file it came from, "PNG" or the like; empty for an
      image that was never a file.
    icc_profile: ICC colour profile of the pixels; None means sRGB by custom.
    exif: EXIF block (a TIFF structure, without the "Exif" prefix), its
      orientation reset and its thumbnail removed.
    xmp: XMP packet, UTF-8.
    dpi: Horizontal and vertical pixels an inch.
    bits: Bits of a sample in the file, where the pixels' dtype has more: 10 or
      12 that became uint16, 16 of half floats. The writer keeps to them where
      the format can.
    linear: Of floats: whether the file has linear light. The pixels then went
      through sRGB's curve, extended beyond 1 and odd below 0 (`light.py`), by
      which networks know pictures.
    gain: Of floats: what the display's values were divided by, for the pixels
      to be in about [0, 1]; 1 is a screen's white.
    white: Of floats that are not linear: the file's number for white, 1 unless
      its values are in 0 to 255 or the like, or else far above 1.
    size: Width and height of the picture that all this was said of, upright;
      None: those of the pixels. Of an enlarged one, what counts in pixels is
      scaled by them when it is written.
    extra_samples: What a TIFF says of the samples after the colours, the
      transparent one among them, by the numbers of its tag 338; None: nothing.
    png_chunks: Kind and body of a PNG's chunks that state its colours or hold
      texts; written to PNG as they are.
    geotiff: Values of GeoTIFF's tags, bytes where they are text, for a picture
      of `size`; written to TIFF, fit for the pixels.
    record: One printable line on how the picture was made, for people who find
      the file; written where its format has room for it.

  >>> Metadata(dpi=(300.0, 300.0)).icc_profile is None
  True
  """

  format: str = ""
  icc_profile: bytes | None = dataclasses.field(default=None, repr=False)
  exif: bytes | None = dataclasses.field(default=None, repr=False)
  xmp: bytes | None = dataclasses.field(default=None, repr=False)
  dpi: tuple[float, float] | None = None
  bits: int | None = None
  linear: bool = False
  gain: float = 1.0
  white: float = 1.0
  size: tuple[int, int] | None = None
  extra_samples: tuple[int, ...] | None = None
  png_chunks: tuple[tuple[bytes, bytes], ...] = dataclasses.field(
    default=(), repr=False
  )
  geotiff: Mapping[int, tuple[float, ...] | bytes] | None = dataclasses.field(
    default=None, repr=False, hash=False
  )
  record: str | None = None

  def __post_init__(self):
    if not (0 < self.gain < math.inf and 0 < self.white < math.inf):
      raise ValueError(
        f"gain is {self.gain} and white {self.white}; both are above 0"
      )
    if self.size is not None and min(self.size) < 1:
      raise ValueError(f"size is {self.size}, and sides are at least 1")
    if self.record is not None and not (
      self.record and self.record.isprintable()
    ):
      raise ValueError(f"record is {self.record!r}, not one printable line")


@dataclasses.dataclass(frozen=True, eq=False)
class Image:
  """A picture as its file has it: its own depth, upright, alpha apart.

  Attributes:
    pixels: uint8 or uint16 `[H, W, C]`, C = 1 (grey) or 3 (RGB); or float32,
      finite, as a display shows them, in about [0, 1] (`Metadata.gain`).
      Colour is not multiplied by alpha.
    alpha: None, or `[H, W]` of the same dtype; 0 is transparent.
    metadata: Profile, EXIF and the like.
    extra: None, or `[H, W, E]` of the same dtype, E >= 1: further samples that
      are neither colour nor transparency, such as bands of a satellite.
    notes: Sentences on what of its file is not in it, one printable line each.

  Raises:
    ValueError: If shapes or dtypes are not those above, or an axis is empty.

  >>> Image(np.zeros((2, 4, 3), np.uint8)).pixels.shape
  (2, 4, 3)
  """

  pixels: np.ndarray
  alpha: np.ndarray | None = None
  metadata: Metadata = dataclasses.field(default_factory=Metadata)
  extra: np.ndarray | None = None
  notes: tuple[str, ...] = ()

  def __post_init__(self):
    shape, dtype = self.pixels.shape, self.pixels.dtype
    if dtype not in DTYPES:
      raise ValueError(
        f"pixels are {dtype}, not uint8, uint16 or float32; convert with"
        " from_float"
      )
    if len(shape) != 3 or shape[2] not in (1, 3) or 0 in shape:
      raise ValueError(f"pixels are {list(shape)}, not [H, W, 1] or [H, W, 3]")
    if self.alpha is not None and (
      self.alpha.shape != shape[:2] or self.alpha.dtype != dtype
    ):
      raise ValueError(
        f"alpha is {self.alpha.dtype} {list(self.alpha.shape)}, and the pixels"
        f" need {dtype} {list(shape[:2])}"
      )
    if self.extra is not None and (
      self.extra.ndim != 3
      or self.extra.shape[:2] != shape[:2]
      or self.extra.shape[2] == 0
      or self.extra.dtype != dtype
    ):
      raise ValueError(
        f"extra is {self.extra.dtype} {list(self.extra.shape)}, and the pixels"
        f" need {dtype} [{shape[0]}, {shape[1]}, 1 or more]"
      )
    for note in self.notes:
      if not note.isprintable():
        raise ValueError(f"the note {note!r} is not one printable line")


def is_image_suffix(path: str | os.PathLike) -> bool:
  """Tells whether a file's suffix is one of an image that can be read.

  Args:
    path: Path or name; the file need not exist, capitals do not matter.

  Returns:
    True if the suffix is in `INPUT_SUFFIXES`.

  >>> is_image_suffix("IMG_0001.JPG"), is_image_suffix("notes.txt")
  (True, False)
  """
  return pathlib.PurePath(path).suffix.lower() in INPUT_SUFFIXES


def to_float(pixels: np.ndarray) -> np.ndarray:
  """Returns pixels as floats in [0, 1].

  Args:
    pixels: uint8, uint16 or float32, any shape.

  Returns:
    float32 of the same shape: `pixels` / 255, or / 65535; floats as they are,
    which may leave [0, 1] a little.

  Raises:
    ValueError: If `pixels` are of another dtype.

  >>> to_float(np.array([0, 255], np.uint8)).tolist()
  [0.0, 1.0]
  """
  if pixels.dtype not in DTYPES:
    raise ValueError(f"pixels are {pixels.dtype}, not uint8, uint16 or float32")
  if pixels.dtype == np.float32:
    return pixels
  return pixels / np.float32(np.iinfo(pixels.dtype).max)


def from_float(array: np.ndarray, dtype: Any) -> np.ndarray:
  """Returns floats in [0, 1] as pixels; integers are clipped and rounded.

  The inverse of `to_float`, exact for every uint8 and uint16 value.

  Args:
    array: Floats, any shape; for integers, what lies outside [0, 1] is
      clipped.
    dtype: `np.uint8`, `np.uint16` or `np.float32`.

  Returns:
    Of the same shape: integers rounded to the nearest, halves to even; or
    float32, unclipped.

  Raises:
    ValueError: If `dtype` is another one, or `array` holds a NaN.

  >>> from_float(np.array([-1, 0.5, 2]), np.uint8).tolist()
  [0, 128, 255]
  """
  dtype = np.dtype(dtype)
  if dtype not in DTYPES:
    raise ValueError(f"dtype is {dtype}, not uint8, uint16 or float32")
  scaled = np.asarray(array, np.float32)
  if dtype != np.float32:
    scaled = np.clip(scaled, 0, 1)
  if np.isnan(scaled).any():
    raise ValueError(
      f"{int(np.isnan(scaled).sum())} of {scaled.size} values are NaN; the"
      " model's weights or its input are broken"
    )
  if dtype == np.float32:
    return scaled
  return np.rint(scaled * np.float32(np.iinfo(dtype).max)).astype(dtype)


def bleed_colour(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
  """Fills the colour of transparent pixels from the nearest visible ones.

  Editors leave black or white where alpha is 0. Nobody sees it until a network
  with a wide receptive field draws it into the visible edge.

  Args:
    pixels: `[H, W, C]`.
    alpha: `[H, W]`, >= 0; pixels above 0 are visible.

  Returns:
    A copy of `pixels`, bit-identical where `alpha` > 0. Elsewhere it has the
    colour of the nearest pixel that is visible. Where nothing is transparent,
    or all, just a copy.

  Raises:
    ValueError: If the first two axes of `pixels` are not those of `alpha`.

  >>> row = np.array([[[9], [0], [0]]], np.uint8)
  >>> bleed_colour(row, np.array([[255, 0, 0]], np.uint8))[0, :, 0].tolist()
  [9, 9, 9]
  """
  if pixels.shape[:2] != alpha.shape:
    raise ValueError(
      f"alpha is {list(alpha.shape)} and pixels are {list(pixels.shape)};"
      " height and width must agree"
    )
  filled = pixels.copy()
  hidden = alpha == 0
  if hidden.any() and not hidden.all():
    from scipy import ndimage  # Which comes with jax.

    nearest = ndimage.distance_transform_edt(
      hidden, return_distances=False, return_indices=True
    )
    filled[hidden] = pixels[tuple(nearest[:, hidden])]
  return filled


def opaque(dtype: Any) -> float:
  """Returns the alpha of what lets nothing shine through: 255, 65535 or 1.

  Args:
    dtype: Of pixels.

  >>> opaque(np.uint8), opaque(np.float32)
  (255, 1.0)
  """
  dtype = np.dtype(dtype)
  return np.iinfo(dtype).max if dtype.kind == "u" else 1.0


def bands(pixels: np.ndarray, samples: int = 0) -> list[slice]:
  """Cuts rows into bands of about 2 MB, reckoning with so many samples."""
  H, W, C = pixels.shape if pixels.ndim == 3 else (*pixels.shape, 1)
  step = max(1, 2**21 // (W * (samples or C) * pixels.itemsize))
  return [slice(top, min(top + step, H)) for top in range(0, H, step)]


def samples_of(
  image: Image, rows: slice, columns: slice = slice(None), *, at: int = 0
) -> np.ndarray:
  """Returns a part as [rows, columns, samples], or a view.

  Args:
    image: All of it, `extra` too.
    rows: Of the part.
    columns: Of the part.
    at: Alpha's place among the samples after the colours.
  """
  planes = [np.asarray(image.pixels[rows])[:, columns]]
  if image.extra is not None:
    extra = np.asarray(image.extra[rows])[:, columns]
    planes += [extra[..., :at], extra[..., at:]]
  if image.alpha is not None:
    planes.insert(2, image.alpha[rows, columns, None])
  if len(planes) == 1:
    return planes[0]
  return np.concatenate(planes, axis=2)
