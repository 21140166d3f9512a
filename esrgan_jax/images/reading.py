"""Reading an image file, whatever its content claims to be."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pathlib
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import (
  BmpImagePlugin,
  GifImagePlugin,
  JpegImagePlugin,
  PngImagePlugin,
  WebPImagePlugin,
)
from PIL import Image as PilImage

from esrgan_jax.images.assembly import (
  assemble,
  check_size,
  check_webp,
  from_pillow,
  refuse_frames,
  split_alpha,
)
from esrgan_jax.images.metadata import load_exif, orientation_of
from esrgan_jax.images.pixels import MAX_PIXELS, Image, ImageError
from esrgan_jax.images.tiff import read_tiff


def read_image(
  path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS
) -> Image:
  """Reads a PNG, JPEG, WebP, TIFF, BMP or one-frame GIF file.

  The format is told by the content, not by the suffix. CMYK and Lab become
  sRGB of 8 bits (CMYK by its own ICC profile where it has one); the profile
  is dropped then, as it does not describe the result.

  Args:
    path: The file.
    max_pixels: Most pixels (height x width) to accept. It is checked against
      the header, before anything of that size is allocated. Pillow's
      own limit, 179 million, stands as well for WebP and GIF.

  Returns:
    The picture, upright.

  Raises:
    ImageError: If there is no such file, or it is empty, cut short, damaged,
      not an image, of several frames or pages, of floating-point or other
      unusual samples, or larger than `max_pixels`.

  >>> import tempfile
  >>> from esrgan_jax.images.writing import write_image
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file = os.path.join(folder, "grey.png")
  ...   write_image(file, Image(np.full((2, 3, 1), 40_000, np.uint16)))
  ...   image = read_image(file)
  >>> image.pixels.shape, image.pixels.dtype.name, image.metadata.format
  ((2, 3, 1), 'uint16', 'PNG')
  """
  path = pathlib.Path(path)
  try:
    data = _read_file(path, max_pixels)
    # Pillow warns of damaged metadata and large pictures: the first does not
    # matter to the pixels, the second has its own check here.
    with warnings.catch_warnings(), _hushed("tifffile"), _hushed("imagecodecs"):
      warnings.simplefilter("ignore")
      return _decode(data, max_pixels)
  except ImageError as error:
    raise ImageError(f"{path}: {error}") from error.__cause__
  except PilImage.DecompressionBombError as error:
    # Some plugins ask a global limit themselves; it is not ours to change.
    raise ImageError(
      f"{path}: {str(error).split(',')[0]} (Pillow's own limit); raise"
      " PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
    ) from error
  except MemoryError:
    raise ImageError(
      f"{path}: not enough memory to decode it; use a smaller picture"
    ) from None
  except Exception as error:
    # Decoders fed with damaged files raise nearly anything: OSError,
    # SyntaxError, struct.error, IndexError, TypeError, zlib.error ...
    reason = " ".join(str(error).split()) or type(error).__name__
    raise ImageError(
      f"{path}: damaged or cut short ({reason}); save it again from its source"
    ) from error


@contextlib.contextmanager
def _hushed(name: str) -> Iterator[None]:
  """Keeps from a library's log what this thread makes it say."""
  this = threading.get_ident()

  def others(record: logging.LogRecord) -> bool:
    return record.thread != this

  log = logging.getLogger(name)
  log.addFilter(others)
  try:
    yield
  finally:
    log.removeFilter(others)


def _read_file(path: pathlib.Path, max_pixels: int) -> bytes:
  try:
    if not path.exists():
      raise ImageError("no such file; check the name")
    if not path.is_file():
      raise ImageError("not a file; name an image file")
    size = path.stat().st_size
    if size == 0:
      raise ImageError("the file is empty (0 bytes); copy it again")
    # Even 16-bit RGBA without compression stays below 16 bytes a pixel.
    limit = 16 * max_pixels + 2**26
    if size > limit:
      raise ImageError(
        f"the file has {size} bytes, and no image of max_pixels={max_pixels}"
        f" has more than {limit}; raise max_pixels if you trust the file"
      )
    return path.read_bytes()
  except OSError as error:
    reason = error.strerror or type(error).__name__
    raise ImageError(f"cannot be read: {reason}") from error


def _decode(data: bytes, max_pixels: int) -> Image:
  """Sends the bytes of a file to the reader of its format."""
  if data.startswith(b"\x89PNG\r\n\x1a\n"):
    return _read_png(data, max_pixels)
  if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
    return read_tiff(data, max_pixels)
  if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
    check_webp(data, max_pixels)
    return _read_pillow(WebPImagePlugin.WebPImageFile, data, max_pixels)
  if data.startswith(b"\xff\xd8\xff"):
    # Also the first picture of an MPO, which is the photo itself.
    return _read_pillow(JpegImagePlugin.JpegImageFile, data, max_pixels)
  if data.startswith((b"GIF87a", b"GIF89a")):
    return _read_pillow(GifImagePlugin.GifImageFile, data, max_pixels)
  if data.startswith(b"BM"):
    return _read_pillow(BmpImagePlugin.BmpImageFile, data, max_pixels)
  if data[4:8] == b"ftyp":
    raise ImageError("a HEIC, AVIF or video file; convert it to PNG or JPEG")
  raise ImageError(
    "not an image of a known format; PNG, JPEG, WebP, TIFF, BMP and GIF are"
    " read"
  )


def _read_pillow(
  plugin: Callable[[BinaryIO], Any], data: bytes, max_pixels: int
) -> Image:
  """Reads what Pillow reads without loss, of a format already told."""
  # A plugin's class, not `Image.open`: that one has limits of its own, which
  # are global state.
  with plugin(io.BytesIO(data)) as picture:
    check_size(*picture.size, max_pixels)
    refuse_frames(getattr(picture, "n_frames", 1), "frames")
    picture.load()
    return _assemble(*from_pillow(picture), picture)


def _read_png(data: bytes, max_pixels: int) -> Image:
  """Reads a PNG; Pillow decodes all but 16 bits."""
  kind, *size, depth, colour = struct.unpack_from(">4sIIBB", data, 12)
  if kind != b"IHDR":
    raise ValueError("no header")
  check_size(*size, max_pixels)
  with PngImagePlugin.PngImageFile(io.BytesIO(data)) as picture:
    check_size(*picture.size, max_pixels)  # It would obey a second header.
    refuse_frames(getattr(picture, "n_frames", 1), "frames")
    # All of it, also where the pixels are not used: metadata may come last.
    picture.load()
    key = (
      None if picture.mode == "P" else picture.info.pop("transparency", None)
    )
    if depth == 16:
      import imagecodecs

      # It makes alpha of a transparent colour by itself.
      pixels, alpha = split_alpha(imagecodecs.png_decode(data))
      profile = picture.info.get("icc_profile")
    else:
      pixels, alpha, profile = from_pillow(picture)
      if key is not None and colour in (0, 2):
        # Pillow compares scaled samples with an unscaled key.
        mask = 2**depth - 1
        values = (np.atleast_1d(key) & mask) * 255 // mask
        alpha = np.where((pixels != values).any(axis=2), 255, 0)
        alpha = alpha.astype(np.uint8)
    return _assemble(pixels, alpha, profile, picture)


def _assemble(
  pixels: np.ndarray,
  alpha: np.ndarray | None,
  profile: bytes | None,
  picture: Any,
) -> Image:
  """Adds what Pillow found beside the pixels."""
  fields = {key: picture.info.get(key) for key in ("exif", "xmp", "dpi")}
  fields["icc_profile"] = profile
  fields["format"] = "JPEG" if picture.format == "MPO" else picture.format
  exif = load_exif(fields.pop("exif"))
  return assemble(pixels, alpha, exif, orientation_of(exif), **fields)
