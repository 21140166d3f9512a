"""Reading an image file, whatever its content claims to be."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import pathlib
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from esrgan_jax.images import limits
from esrgan_jax.images.assembly import Found, assemble
from esrgan_jax.images.decoders import exr, jp2, jxl, tga
from esrgan_jax.images.decoders.bmp import read_bmp
from esrgan_jax.images.decoders.gif import read_gif
from esrgan_jax.images.decoders.heif import read_heif
from esrgan_jax.images.decoders.jpeg import read_jpeg
from esrgan_jax.images.decoders.png import read_png
from esrgan_jax.images.decoders.pnm import is_pnm, read_pnm
from esrgan_jax.images.decoders.qoi import read_qoi
from esrgan_jax.images.decoders.tiff import read_tiff
from esrgan_jax.images.decoders.webp import read_webp
from esrgan_jax.images.pixels import MAX_PIXELS, Image, ImageError
from esrgan_jax.images.sizes import size_of
from esrgan_jax.text import printable

# Of a file of any picture, for metadata, and what cameras put behind it; and
# of each pixel. 16-bit RGBA without compression has 8, layers of a film more.
_FREE_LENGTH = 2**26
_MOST_BYTES = 256


def read_image(
  path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS
) -> Image:
  """Reads a picture of any format that docs/formats.md has.

  The format is told by the content, not by the suffix. CMYK and Lab become
  sRGB of 8 bits (CMYK by its own ICC profile where it has one); the profile
  is dropped then, as it does not describe the result. Floats become what a
  display shows (`Metadata.linear` and `gain`).

  Args:
    path: The file.
    max_pixels: Most pixels (height x width) to accept. It is checked against
      the header, before anything of that size is allocated. A sixteenth of it
      may be claimed by a file of any length; beyond, pixels and scans are held
      against the bytes that are there, generously.

  Returns:
    The picture, upright.

  Raises:
    ImageError: If there is no such file, or it is empty, cut short, damaged,
      not an image, of several frames or pages, of NaN or infinity or other
      unusual samples, larger than `max_pixels`, or much larger than its bytes
      make believable, or its library is not there. The message is one
      printable line.

  >>> import tempfile
  >>> import numpy as np
  >>> from esrgan_jax.images.writing import write_image
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file = os.path.join(folder, "grey.png")
  ...   _ = write_image(file, Image(np.full((2, 3, 1), 40_000, np.uint16)))
  ...   image = read_image(file)
  >>> image.pixels.shape, image.pixels.dtype.name, image.metadata.format
  ((2, 3, 1), 'uint16', 'PNG')
  """
  path = pathlib.Path(path)
  with explained(path):
    return read_single(path, max_pixels)


def read_single(path: pathlib.Path, max_pixels: int) -> Image:
  """As `read_image`, with errors as they come."""
  with opened(path) as (reader, file, length):
    if length > _FREE_LENGTH:
      _check_length(file, length, max_pixels)
    data = file.read()
  return assemble(reader(data, max_pixels))


def decode_image(
  data: bytes, *, name: str, max_pixels: int = MAX_PIXELS
) -> Image:
  """Reads a picture as `read_image` does, from the bytes of its file.

  Args:
    data: All of them.
    name: What it is, for errors, which begin with it.
    max_pixels: See `read_image`.

  Returns:
    The picture, upright.

  Raises:
    ImageError: As `read_image`.

  >>> import pathlib, tempfile
  >>> import numpy as np
  >>> from esrgan_jax.images.writing import write_image
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file = pathlib.Path(folder, "grey.png")
  ...   _ = write_image(file, Image(np.full((2, 3, 1), 7, np.uint8)))
  ...   decode_image(file.read_bytes(), name="record 1").pixels.shape
  (2, 3, 1)
  """
  with explained(name):
    file = io.BytesIO(data)
    reader = _reader_of(file, len(data), suffix="")
    file.seek(0)
    if len(data) > _FREE_LENGTH:
      _check_length(file, len(data), max_pixels)
    return assemble(reader(data, max_pixels))


@contextlib.contextmanager
def explained(path: str | pathlib.Path, frame: str = "") -> Iterator[None]:
  """Makes an `ImageError` of whatever a decoder raises; hushes imagecodecs.

  Args:
    path: The file, or its name, which the message has first.
    frame: The frame, which it names then, if it is about one.
  """
  name = printable(path) + (frame and f": {frame}")
  try:
    with _hushed("imagecodecs"):
      yield
  except ImageError as error:
    raise ImageError(f"{name}: {error}") from error.__cause__
  except MemoryError as error:
    raise ImageError(
      f"{name}: not enough memory to decode it; use a smaller picture"
    ) from error
  except Exception as error:
    # Of the system: what decoders raise of damaged files has no number, or
    # that of a place which no file has.
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
      raise ImageError(
        f"{name}: cannot be read: {printable(error.strerror)}"
      ) from error
    # Decoders fed with damaged files raise nearly anything: OSError,
    # RuntimeError, struct.error, IndexError, TypeError, zlib.error ...
    raise ImageError(
      f"{name}: damaged or cut short ({_reason(error)}); save it again from its"
      " source"
    ) from error


def _reason(error: Exception) -> str:
  """Says what a decoder found wrong, without what only its program knows."""
  text = printable(" ".join(str(error).split()))
  if isinstance(error, (struct.error, IndexError, EOFError)) or (
    # NumPy's, and of bytes that are looked for.
    text.startswith(("buffer is smaller than", "subsection not found"))
  ):
    return "it ends too early"
  if isinstance(error, KeyError):
    return f"no {text}"
  if isinstance(error, zlib.error):
    return "its packed data are wrong"
  return text or type(error).__name__


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


@contextlib.contextmanager
def opened(
  path: pathlib.Path,
) -> Iterator[tuple[Callable[[bytes, int], Found], BinaryIO, int]]:
  """Opens a file that can be a picture.

  Yields:
    The reader of its format, the file, and its length.
  """
  try:
    if not path.exists():
      raise ImageError("no such file; check the name")
    if not path.is_file():
      raise ImageError("not a file; name an image file")
    with open(path, "rb") as file:
      length = os.fstat(file.fileno()).st_size
      reader = _reader_of(file, length, path.suffix)
      file.seek(0)
      yield reader, file, length
  except OSError as error:
    reason = error.strerror or type(error).__name__
    raise ImageError(f"cannot be read: {reason}") from error


def _check_length(file: BinaryIO, length: int, max_pixels: int) -> None:
  """Refuses a file that is much longer than its picture can be."""
  width, height = size_of(file) or (0, 0)
  file.seek(0)
  limits.check_size(max(width, 1), max(height, 1), max_pixels)
  if length > _FREE_LENGTH + _MOST_BYTES * width * height:
    raise ImageError(
      f"{length} bytes are too many for a picture of {width} x {height} pixels;"
      " save it as PNG"
    )


def _reader_of(
  file: BinaryIO, length: int, suffix: str
) -> Callable[[bytes, int], Found]:
  """Tells the format by the first bytes; of TGA, by the last or its name."""
  if length == 0:
    raise ImageError("the file is empty (0 bytes); copy it again")
  data = file.read(32)
  for head, reader in _READERS.items():
    if data.startswith(head):
      return reader
  if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
    return read_webp
  if is_pnm(data):
    return read_pnm
  if data[4:8] == b"ftyp":
    if data[8:12] in _FILMS:
      raise ImageError("a video; save its frames as PNG files first")
    return read_heif
  file.seek(max(0, length - tga.FOOTER_BYTES))
  if tga.is_tga(data, file.read(), suffix):
    return tga.read_tga
  raise ImageError(
    "not an image of a known format; PNG, JPEG, WebP, TIFF, BMP, GIF and some"
    " more are read (docs/formats.md)"
  )


# Brands of video files, which pictures' files don't have first.
_FILMS = (
  b"isom",
  b"iso2",
  b"mp41",
  b"mp42",
  b"avc1",
  b"qt  ",
  b"M4V ",
  b"3gp5",
)
_READERS = {
  b"\x89PNG\r\n\x1a\n": read_png,
  b"\xff\xd8\xff": read_jpeg,
  b"II*\0": read_tiff,
  b"MM\0*": read_tiff,
  b"II+\0": read_tiff,
  b"MM\0+": read_tiff,
  b"GIF87a": read_gif,
  b"GIF89a": read_gif,
  b"BM": read_bmp,
  exr.SIGNATURE: exr.read_exr,
  b"qoif": read_qoi,
  jxl.STREAM: jxl.read_jxl,
  jxl.CONTAINER: jxl.read_jxl,
  jp2.STREAM: jp2.read_jp2,
  jp2.BOXES: jp2.read_jp2,
}
