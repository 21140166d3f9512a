"""Animated WebP: frames as libwebp packs single pictures, put together here."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import BinaryIO

import numpy as np
from PIL import Image as PilImage

from esrgan_jax.images.encoders import changes, timing
from esrgan_jax.images.pixels import Image, ImageError

# Flags of VP8X.
_ANIMATION, _XMP, _EXIF, _ALPHA, _ICC = 2, 4, 8, 16, 32
_REPLACES = 2  # A flag of ANMF: it is not blended.


def write_webp(
  file: BinaryIO,
  images: Iterable[Image],
  durations: Sequence[Fraction],
  loop: int,
  *,
  quality: int,
  lossless: bool,
) -> None:
  """Writes an animated WebP of 8-bit frames; each is the part that changes."""
  delays = timing.ticks(durations, 1, 2**24 - 1)
  parts = changes.cut(images, step=2)
  after: list[tuple[bytes, bytes | None]] = []
  file.write(b"RIFF\0\0\0\0WEBP")
  for number, (delay, (image, left, top)) in enumerate(
    zip(delays, parts, strict=True)
  ):
    height, width = image.pixels.shape[:2]
    if number == 0:
      info = image.metadata
      flags = _ANIMATION | _ALPHA * (image.alpha is not None)
      flags |= _ICC * (info.icc_profile is not None)
      flags |= _EXIF * (info.exif is not None) | _XMP * (info.xmp is not None)
      head = struct.pack("<I", flags) + _uint24(width - 1, height - 1)
      _write_chunk(file, b"VP8X", head)
      if info.icc_profile is not None:
        _write_chunk(file, b"ICCP", info.icc_profile)
      # Four bytes are the background, which nobody goes by.
      _write_chunk(file, b"ANIM", struct.pack("<4xH", min(loop, 65_535)))
      after = [(b"EXIF", info.exif), (b"XMP ", info.xmp)]
    place = _uint24(left // 2, top // 2, width - 1, height - 1, delay)
    data = _packed(image, quality, lossless)
    _write_chunk(file, b"ANMF", place + bytes((_REPLACES,)) + data)
  for kind, body in after:
    if body is not None:
      _write_chunk(file, kind, body)
  size = file.tell() - 8
  if size >= 2**32 - 8:
    raise ImageError(f"{size} bytes exceed WebP's 4 GB; choose .png")
  file.seek(4)
  file.write(struct.pack("<I", size))


def _uint24(*values: int) -> bytes:
  return b"".join(value.to_bytes(3, "little") for value in values)


def _write_chunk(file: BinaryIO, kind: bytes, body: bytes) -> None:
  file.write(struct.pack("<4sI", kind, len(body)))
  file.write(body)
  file.write(bytes(len(body) % 2))


def _packed(image: Image, quality: int, lossless: bool) -> bytes:
  """Returns the chunks of a picture's pixels."""
  pixels = image.pixels
  if pixels.shape[2] == 1:
    pixels = pixels.repeat(3, axis=2)
  if image.alpha is not None:
    pixels = np.concatenate([pixels, image.alpha[..., None]], axis=2)
  buffer = io.BytesIO()
  PilImage.fromarray(np.ascontiguousarray(pixels)).save(
    buffer, "WEBP", quality=quality, lossless=lossless, exact=lossless
  )
  data = buffer.getbuffer()
  parts, at = [], 12
  while at < len(data):
    kind, size = struct.unpack_from("<4sI", data, at)
    end = at + 8 + size + size % 2
    if kind in (b"ALPH", b"VP8 ", b"VP8L"):
      parts.append(data[at:end])
    at = end
  return b"".join(parts)
