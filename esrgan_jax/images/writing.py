"""Writing an image file: complete under its name, or not at all."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any, BinaryIO

import numpy as np
from PIL import Image as PilImage

from esrgan_jax import storage
from esrgan_jax.images import light
from esrgan_jax.images.encoders.png import write_png
from esrgan_jax.images.encoders.tiff import write_tiff
from esrgan_jax.images.fitting import fit_metadata, no_room
from esrgan_jax.images.pixels import (
  OUTPUT_SUFFIXES,
  Image,
  ImageError,
  bands,
  opaque,
)
from esrgan_jax.text import printable


def write_image(
  path: str | os.PathLike,
  image: Image,
  *,
  quality: int = 95,
  lossless: bool = False,
  overwrite: bool = False,
) -> tuple[str, ...]:
  """Writes an image; the suffix of `path` chooses the format.

  The file is written aside, in the same folder, and appears under its name
  only when it is complete. ICC profile, EXIF, XMP and resolution go along
  where the format holds them. PNG and TIFF are lossless, with deflate at a
  speed and size that suit photographs (see `png.py`); JPEG is 4:4:4. 16 bits
  become 8, rounded, where the format has no more: JPEG, WebP, BMP. An EXIF or
  XMP block over JPEG's 64 KB is left out there.

  Args:
    path: File to write; its suffix is one of `OUTPUT_SUFFIXES`.
    image: What to write; it may live in a `numpy.memmap`.
    quality: 1 to 100, for JPEG and lossy WebP.
    lossless: Keep every sample, in WebP too; PNG, TIFF and BMP always do.
    overwrite: Replace a file of that name. Without it, an existing file is
      never touched, even if it appears while this one is being written.

  Returns:
    Sentences on what of `image` the format could not hold, one line each.

  Raises:
    ImageError: If the suffix is unknown, the file exists, `image` does not
      fit the format (transparency in JPEG or BMP, or too many pixels), the
      format has no lossless form and is asked for one, or writing fails.
    ValueError: If `quality` is not in 1 to 100.

  >>> import tempfile
  >>> from esrgan_jax.images.reading import read_image
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file = os.path.join(folder, "black.jpg")
  ...   _ = write_image(file, Image(np.zeros((8, 8, 3), np.uint8)))
  ...   read_image(file).pixels.max()
  np.uint8(0)
  """
  path = pathlib.Path(path)
  if not 1 <= quality <= 100:
    raise ValueError(f"quality is {quality}, not in 1 to 100")
  transparent = False
  if image.alpha is not None:
    transparent = bool(image.alpha.min() < opaque(image.alpha.dtype))
  check_fits(
    path, image.pixels.shape, transparent=transparent, lossless=lossless
  )
  format_ = OUTPUT_SUFFIXES[path.suffix.lower()]
  try:
    image, notes = fit(image, format_)
    with storage.written_aside(path, overwrite=overwrite) as file:
      if format_ == "PNG":
        write_png(file, image)
      elif format_ == "TIFF":
        write_tiff(file, image)
      else:
        _write_pillow(file, image, format_, quality, lossless)
    return notes
  except ImageError as error:
    raise ImageError(f"{printable(path)}: {error}") from error.__cause__
  except OSError as error:
    raise ImageError(str(error)) from error


@dataclasses.dataclass(frozen=True)
class _Format:
  """What a format holds.

  Attributes:
    side: The longest it can have.
    depth: The deepest samples; shallower ones are kept.
    alpha: Whether it has transparency.
    lossless: True if always, False if never, None if asked for.
    holds: Of icc_profile, exif and xmp, what it has room for.
  """

  side: int
  depth: type
  alpha: bool = True
  lossless: bool | None = True
  holds: frozenset[str] = frozenset(("icc_profile", "exif", "xmp"))


FORMATS = {
  "PNG": _Format(2**31 - 1, np.uint16),
  # libjpeg's JPEG_MAX_DIMENSION, and WebP's 14 bits.
  "JPEG": _Format(65_500, np.uint8, alpha=False, lossless=False),
  "WEBP": _Format(16_383, np.uint8, lossless=None),
  "TIFF": _Format(2**32 - 1, np.float32),
  "BMP": _Format(2**31 - 1, np.uint8, alpha=False, holds=frozenset()),
  # Animations alone, by `write_frames`.
  "GIF": _Format(65_535, np.uint8, lossless=False, holds=frozenset()),
}


def can_be_lossless(path: str | os.PathLike) -> bool:
  """Tells whether a suffix is of a format that can keep every sample.

  Args:
    path: Path or name; its suffix counts, as in `OUTPUT_SUFFIXES`.

  Returns:
    Whether `write_image(path, image, lossless=True)` does it; False of a
    suffix that cannot be written.

  >>> can_be_lossless("a.webp"), can_be_lossless("a.jpg")
  (True, False)
  """
  format_ = OUTPUT_SUFFIXES.get(pathlib.PurePath(path).suffix.lower())
  return format_ is not None and FORMATS[format_].lossless is not False


def check_fits(
  path: str | os.PathLike,
  shape: tuple[int, ...],
  *,
  transparent: bool,
  lossless: bool = False,
) -> None:
  """Raises an error if a format cannot hold a picture, before it is made.

  Args:
    path: File that is to be written; its suffix chooses the format.
    shape: `[H, W, C]` of the picture's pixels.
    transparent: Whether any pixel lets anything shine through.
    lossless: Whether every sample is to be kept.

  Raises:
    ImageError: If the suffix is unknown, the picture is too large for the
      format, or the format has no transparency or no lossless form.

  >>> check_fits("large.jpg", (100, 70_000, 3), transparent=False)
  Traceback (most recent call last):
  ...
  esrgan_jax.images.pixels.ImageError: large.jpg: 70000 x 100 pixels do not ...
  """
  H, W, C = shape
  name = printable(path)
  suffix = pathlib.Path(path).suffix
  format_ = OUTPUT_SUFFIXES.get(suffix.lower())
  if format_ is None:
    raise ImageError(
      f"{name}: suffix '{printable(suffix)}' is not one that can be written;"
      f" choose one of {' '.join(OUTPUT_SUFFIXES)}"
    )
  if max(H, W) > (limit := FORMATS[format_].side):
    raise ImageError(
      f"{name}: {W} x {H} pixels do not fit {format_}, which ends at {limit} a"
      " side; choose .png"
    )
  if format_ == "BMP" and H * (W * C + 3) + 2048 >= 2**32:
    raise ImageError(f"{name}: {W} x {H} pixels exceed BMP's 4 GB; choose .png")
  if transparent and not FORMATS[format_].alpha:
    raise ImageError(
      f"{name}: {format_} cannot hold transparency; choose .png, .webp or .tif,"
      " or a background (--background)"
    )
  if lossless and not can_be_lossless(path):
    others = " ".join(s for s in OUTPUT_SUFFIXES if can_be_lossless(f"a{s}"))
    raise ImageError(
      f"{name}: {format_} has no lossless form; choose one of {others}"
    )


def fit(image: Image, format_: str) -> tuple[Image, tuple[str, ...]]:
  """Returns what the format can hold of an image, and what it cannot."""
  H, W, C = image.pixels.shape
  image = dataclasses.replace(image, notes=())
  if not FORMATS[format_].alpha:
    # Opaque: `check_fits` has seen to it.
    image = dataclasses.replace(image, alpha=None)
  depth = FORMATS[format_].depth
  if image.pixels.dtype == np.float32 and depth != np.float32:
    image = light.to_integers(image, depth)
  notes = list(image.notes)
  pixels, alpha = image.pixels, image.alpha
  if depth == np.uint8:
    pixels = _to_uint8(pixels)
    alpha = None if alpha is None else _to_uint8(alpha)
  extra = image.extra
  if extra is not None and format_ != "TIFF":
    count = extra.shape[2]
    what = f"{count} further {'band' if count == 1 else 'bands'}"
    notes.append(no_room(format_, what, ".tif"))
    extra = None
  metadata, lost = fit_metadata(
    image.metadata,
    (W, H),
    format_,
    channels=3 if format_ == "WEBP" else C,
    holds=FORMATS[format_].holds,
  )
  notes += lost
  return Image(pixels, alpha, metadata, extra), tuple(notes)


def _to_uint8(pixels: np.ndarray) -> np.ndarray:
  """Returns 16 bits as 8: x / 257 to the nearest; 257 is odd, so no ties."""
  if pixels.dtype == np.uint8:
    return pixels
  out = np.empty(pixels.shape, np.uint8)
  for rows in bands(pixels):
    out[rows] = (pixels[rows].astype(np.uint32) + 128) // 257
  return out


def _write_pillow(
  file: BinaryIO, image: Image, format_: str, quality: int, lossless: bool
) -> None:
  """Writes JPEG, WebP or BMP."""
  info = image.metadata
  options: dict[str, Any] = {
    "icc_profile": info.icc_profile,
    "xmp": info.xmp,
    "dpi": info.dpi,
    "exif": None if info.exif is None else b"Exif\0\0" + info.exif,
  }
  if format_ == "JPEG":
    options |= {"quality": quality, "subsampling": 0}
  elif format_ == "WEBP":
    options |= {"quality": quality, "lossless": lossless, "exact": lossless}
  options = {key: value for key, value in options.items() if value is not None}

  pixels = image.pixels
  if image.alpha is not None:
    pixels = np.concatenate([pixels, image.alpha[..., None]], axis=2)
  H, W, samples = pixels.shape
  mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[samples]
  picture = PilImage.frombuffer(
    mode, (W, H), np.ascontiguousarray(pixels), "raw", mode, 0, 1
  )
  if format_ == "WEBP" and samples < 3:
    picture = picture.convert("RGBA" if samples == 2 else "RGB")
  try:
    picture.save(file, format=format_, **options)
  except ValueError as error:
    reason = " ".join(str(error).split())
    raise ImageError(f"{format_} refuses it: {reason}; choose .png") from error
