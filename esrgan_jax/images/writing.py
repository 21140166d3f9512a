"""Writing an image file: complete under its name, or not at all."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from PIL import Image as PilImage

from esrgan_jax import storage
from esrgan_jax.images import light, profiles
from esrgan_jax.images.encoders import jp2, plain
from esrgan_jax.images.encoders.avif import write_avif
from esrgan_jax.images.encoders.exr import chromaticities, write_exr
from esrgan_jax.images.encoders.jxl import write_jxl
from esrgan_jax.images.encoders.png import write_png
from esrgan_jax.images.encoders.tiff import write_tiff
from esrgan_jax.images.fitting import fit_metadata, no_room
from esrgan_jax.images.pixels import (
  ANIMATION_SUFFIXES,
  OUTPUT_SUFFIXES,
  Image,
  ImageError,
  bands,
  opaque,
)
from esrgan_jax.text import printable

_Writer = Callable[[BinaryIO, Image, int, bool], None]


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
  speed and size that suit photographs (see `png.py`); JPEG is 4:4:4. Samples
  are rounded to what the format has; floats are clipped where it has none.
  An EXIF or XMP block over JPEG's 64 KB is left out there. docs/formats.md
  has it by format.

  Args:
    path: File to write; its suffix is one of `OUTPUT_SUFFIXES`.
    image: What to write; it may live in a `numpy.memmap`.
    quality: 1 to 100, of JPEG, and of WebP, AVIF, JPEG XL and JPEG 2000 where
      they are lossy.
    lossless: Keep every sample, in these as well; the others but JPEG always
      do.
    overwrite: Replace a file of that name. Without it, an existing file is
      never touched, even if it appears while this one is being written.

  Returns:
    Sentences on what of `image` the format could not hold, one line each.

  Raises:
    ImageError: If the suffix is unknown, the file exists, `image` does not
      fit the format (transparency in JPEG or BMP, colour in PGM, or too many
      pixels), the format has no lossless form and is asked for one, its
      library is not there, or writing fails.
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
  lost = rounding_notes(image, format_)
  try:
    image, notes = fit(image, format_)
    with storage.written_aside(path, overwrite=overwrite) as file:
      FORMATS[format_].write(file, image, quality, lossless)
    return notes + lost
  except ImageError as error:
    raise ImageError(f"{printable(path)}: {error}") from error.__cause__
  except OSError as error:
    raise ImageError(str(error)) from error


def can_be_lossless(path: str | os.PathLike) -> bool:
  """Tells whether a suffix is of a format that can keep every sample.

  Args:
    path: Path or name; its suffix counts, as in `OUTPUT_SUFFIXES` and
      `ANIMATION_SUFFIXES`.

  Returns:
    Whether `write_image(path, image, lossless=True)` does it, or
    `write_frames`; False of a suffix that cannot be written.

  >>> can_be_lossless("a.webp"), can_be_lossless("a.jpg")
  (True, False)
  """
  suffix = pathlib.PurePath(path).suffix.lower()
  format_ = OUTPUT_SUFFIXES.get(suffix) or ANIMATION_SUFFIXES.get(suffix)
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
  if C not in FORMATS[format_].channels and C == 3:
    raise ImageError(f"{name}: {format_} holds grey only; choose .ppm or .png")
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
  notes = []
  if image.pixels.dtype == np.float32 and format_ != "TIFF":
    floats = depth == np.float32
    notes += light.scale_notes(image.metadata, floats=floats)
    if not floats:
      image = light.to_integers(image, depth)
  notes += image.notes
  pixels, alpha = image.pixels, image.alpha
  if depth == np.uint8:
    pixels = _to_uint8(pixels)
    alpha = None if alpha is None else _to_uint8(alpha)
  if C not in FORMATS[format_].channels:  # Grey, as `check_fits` has seen.
    C = 3
    pixels = np.broadcast_to(pixels, (H, W, C))
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
    channels=C,
    holds=FORMATS[format_].holds,
  )
  notes += lost
  if (
    format_ == "EXR"
    and metadata.icc_profile is not None
    and chromaticities(metadata.icc_profile) is None
    and not profiles.is_srgb(metadata.icc_profile)
  ):
    notes.append(no_room(format_, "colour profile, which is not of a matrix"))
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
  try:
    picture.save(file, format=format_, **options)
  except ValueError as error:
    reason = " ".join(str(error).split())
    raise ImageError(f"{format_} refuses it: {reason}; choose .png") from error


def _by_pillow(format_: str) -> _Writer:
  """Returns a writer of a format that Pillow writes."""

  def write(file: BinaryIO, image: Image, quality: int, lossless: bool) -> None:
    _write_pillow(file, image, format_, quality, lossless)

  return write


def _plainly(write: Callable[[BinaryIO, Image], None]) -> _Writer:
  """Returns a writer that has no use for quality and the like."""
  return lambda file, image, quality, lossless: write(file, image)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Format:
  """What a format holds.

  Attributes:
    write: Writes a picture to an open file, by quality and lossless.
    side: The longest it can have.
    depth: The deepest samples; shallower ones are kept.
    narrow: Bits of a sample, where they are fewer than those of `depth`.
    channels: Of colour; others are made, or refused if they'd be lost.
    alpha: Whether it has transparency.
    lossless: True if always, False if never, None if asked for.
    holds: Of icc_profile, exif and xmp, what it has room for.
  """

  write: _Writer
  side: int
  depth: type = np.uint8
  narrow: int | None = None
  channels: tuple[int, ...] = (1, 3)
  alpha: bool = True
  lossless: bool | None = True
  holds: tuple[str, ...] = ()

  @property
  def bits(self) -> int:
    """Bits of a sample."""
    return self.narrow or 8 * np.dtype(self.depth).itemsize


def _bits_of(image: Image) -> int:
  """Returns the bits of an image's samples, as its file had them."""
  floats = image.pixels.dtype == np.float32
  own = None if floats else image.metadata.bits
  return own or 8 * image.pixels.itemsize


def rounding_notes(image: Image, format_: str) -> tuple[str, ...]:
  """Tells of samples that are rounded to fewer bits."""
  bits = FORMATS[format_].bits
  if bits < _bits_of(image):
    return (f"{format_} has {bits} bits at most, to which it was rounded",)
  return ()


_ALL = ("icc_profile", "exif", "xmp")
FORMATS = {
  "PNG": _Format(
    write=_plainly(write_png), side=2**31 - 1, depth=np.uint16, holds=_ALL
  ),
  # libjpeg's JPEG_MAX_DIMENSION, and WebP's 14 bits.
  "JPEG": _Format(
    write=_by_pillow("JPEG"),
    side=65_500,
    alpha=False,
    lossless=False,
    holds=_ALL,
  ),
  "WEBP": _Format(
    write=_by_pillow("WEBP"),
    side=16_383,
    channels=(3,),
    lossless=None,
    holds=_ALL,
  ),
  "TIFF": _Format(
    write=_plainly(write_tiff), side=2**32 - 1, depth=np.float32, holds=_ALL
  ),
  "BMP": _Format(write=_by_pillow("BMP"), side=2**31 - 1, alpha=False),
  # Animations alone, by `write_frames`.
  "GIF": _Format(write=_by_pillow("GIF"), side=65_535, lossless=False),
  "TGA": _Format(write=_plainly(plain.write_tga), side=2**16 - 1),
  "PPM": _Format(
    write=_plainly(plain.write_pnm),
    side=2**31 - 1,
    depth=np.uint16,
    channels=(3,),
    alpha=False,
  ),
  "PGM": _Format(
    write=_plainly(plain.write_pnm),
    side=2**31 - 1,
    depth=np.uint16,
    channels=(1,),
    alpha=False,
  ),
  "PNM": _Format(
    write=_plainly(plain.write_pnm),
    side=2**31 - 1,
    depth=np.uint16,
    alpha=False,
  ),
  "PAM": _Format(
    write=_plainly(plain.write_pam), side=2**31 - 1, depth=np.uint16
  ),
  "PFM": _Format(
    write=_plainly(plain.write_pfm),
    side=2**31 - 1,
    depth=np.float32,
    alpha=False,
  ),
  "QOI": _Format(
    write=_plainly(plain.write_qoi), side=2**32 - 1, channels=(3,)
  ),
  "EXR": _Format(
    write=_plainly(write_exr),
    side=2**31 - 1,
    depth=np.float32,
    holds=("icc_profile",),
  ),
  # AV1's, of which libavif writes no grid.
  "AVIF": _Format(
    write=write_avif,
    side=65_536,
    depth=np.uint16,
    narrow=12,
    lossless=None,
    holds=_ALL,
  ),
  "JXL": _Format(
    write=write_jxl,
    side=2**30,
    depth=np.float32,
    lossless=None,
    holds=("exif", "xmp"),
  ),
  "JP2": _Format(
    write=jp2.write_jp2,
    side=2**31 - 1,
    depth=np.uint16,
    lossless=None,
    holds=_ALL,
  ),
  "J2K": _Format(
    write=jp2.write_stream, side=2**31 - 1, depth=np.uint16, lossless=None
  ),
}
