"""JPEG XL: the pixels by libjxl, boxes and the word on the curve here."""

from __future__ import annotations

import os
from typing import BinaryIO

import numpy as np

from esrgan_jax.images import boxes, light
from esrgan_jax.images.codecs import codec
from esrgan_jax.images.decoders import jxl
from esrgan_jax.images.pixels import Image

# Of photographs. 7, the library's own, takes six and eighteen times as long.
# Without loss, that saves a tenth.
_EFFORT, _LOSSLESS_EFFORT = 4, 3
_CURVE_BITS = 2  # In front of the four that tell the curve's number, less 2.


def write_jxl(
  file: BinaryIO, image: Image, quality: int, lossless: bool
) -> None:
  """Writes a JPEG XL file; floats as linear light."""
  pixels, info = image.pixels, image.metadata
  floats = pixels.dtype == np.float32
  if floats:
    pixels = light.to_file(pixels, info, linear=True)
  elif pixels.dtype == np.uint16 and not lossless:
    # What has 16 bits is taken for linear light by imagecodecs.
    pixels = light.light_integers(pixels)
  if image.alpha is not None:
    pixels = np.concatenate([pixels, image.alpha[..., None]], axis=2)
  if floats:
    half = info.bits == 16 and light.fits_half(info)
    kind = np.dtype(np.float16 if half else np.float32)
    pixels = light.as_kind(pixels, kind)
  options = {"lossless": True} if lossless else {"distance": distance(quality)}
  data = codec("jpegxl").encode(
    np.ascontiguousarray(pixels),
    effort=_LOSSLESS_EFFORT if lossless else _EFFORT,
    numthreads=os.cpu_count() or 1,
    **options,
  )
  stream, _ = jxl.unbox(bytes(data))
  stream = bytes(stream) if floats else _as_srgb(stream)
  file.write(jxl.CONTAINER)
  file.write(boxes.pack(b"ftyp", b"jxl \0\0\0\0jxl "))
  if pixels.itemsize > 1:  # Of which level 5 knows nothing.
    file.write(boxes.pack(b"jxll", b"\x0a"))
  if info.exif is not None:
    file.write(boxes.pack(b"Exif", bytes(4), info.exif))
  if info.xmp is not None:
    file.write(boxes.pack(b"xml ", info.xmp))
  file.write(boxes.pack(b"jxlc", stream))


def distance(quality: int) -> float:
  """Returns libjxl's measure of loss of a quality, as its program cjxl does.

  >>> distance(100), round(distance(95), 2), round(distance(50), 2)
  (0.1, 0.55, 4.6)
  """
  if quality >= 30:
    return 0.1 + 0.09 * (100 - quality)
  return 53 / 3000 * quality**2 - 23 / 20 * quality + 25


def _as_srgb(stream: memoryview) -> bytes:
  """Says that the curve is sRGB's, where it is said to be a line."""
  head = jxl.parse_header(stream)
  if head.curve != jxl.LINEAR:
    return bytes(stream)
  at = 16 + head.curve_at + _CURVE_BITS
  number = int.from_bytes(stream[: at // 8 + 2], "little")
  number ^= ((jxl.LINEAR - 2) ^ (jxl.SRGB - 2)) << at
  return number.to_bytes(at // 8 + 2, "little") + bytes(stream[at // 8 + 2 :])
