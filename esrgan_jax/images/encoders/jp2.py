"""JPEG 2000: the pixels by OpenJPEG, the boxes here."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

import numpy as np

from esrgan_jax.images import boxes
from esrgan_jax.images.codecs import codec
from esrgan_jax.images.decoders import jp2
from esrgan_jax.images.levels import narrowed
from esrgan_jax.images.pixels import Image


def write_jp2(
  file: BinaryIO, image: Image, quality: int, lossless: bool
) -> None:
  """Writes a JP2 file."""
  stream, bits = _encode(image, quality, lossless)
  H, W, C = image.pixels.shape
  info, alpha = image.metadata, image.alpha is not None
  header = [
    boxes.pack(
      b"ihdr", struct.pack(">IIHBBBB", H, W, C + alpha, bits - 1, 7, 0, 0)
    )
  ]
  if info.icc_profile is not None:
    header.append(boxes.pack(b"colr", b"\2\0\0", info.icc_profile))
  else:
    space = jp2.GREY if C == 1 else jp2.SRGB
    header.append(boxes.pack(b"colr", b"\1\0\0", struct.pack(">I", space)))
  if alpha:
    kinds = [(i, 0, i + 1) for i in range(C)] + [(C, 1, 0)]
    numbers = b"".join(struct.pack(">HHH", *kind) for kind in kinds)
    header.append(boxes.pack(b"cdef", struct.pack(">H", C + 1), numbers))
  if info.dpi is not None:
    # Points a metre, as a fraction by a power of ten; an inch is 254 / 10^4.
    part = 100 if max(info.dpi) < 655 else 1
    across, down = (round(v * part) for v in info.dpi)
    number = struct.pack(">HHHHbb", down, 254 * part, across, 254 * part, 4, 4)
    # As it was taken, and as it is shown: some programs know one, some both.
    both = boxes.pack(b"resc", number) + boxes.pack(b"resd", number)
    header.append(boxes.pack(b"res ", both))
  file.write(jp2.BOXES)
  file.write(boxes.pack(b"ftyp", b"jp2 \0\0\0\0jp2 "))
  file.write(boxes.pack(b"jp2h", *header))
  for name, value in ((jp2.EXIF, info.exif), (jp2.XMP, info.xmp)):
    if value is not None:
      file.write(boxes.pack(b"uuid", name, value))
  file.write(boxes.pack(b"jp2c", stream))


def write_stream(
  file: BinaryIO, image: Image, quality: int, lossless: bool
) -> None:
  """Writes a bare codestream."""
  file.write(_encode(image, quality, lossless)[0])


def _encode(image: Image, quality: int, lossless: bool) -> tuple[bytes, int]:
  """Returns a codestream, and the bits of its samples."""
  pixels = image.pixels
  if image.alpha is not None:
    pixels = np.concatenate([pixels, image.alpha[..., None]], axis=2)
  bits = 8 * pixels.itemsize
  if bits == 16 and image.metadata.bits in range(9, 16):
    bits = image.metadata.bits
    pixels = narrowed(pixels, bits)
  data = codec("jpeg2k").encode(
    np.ascontiguousarray(pixels),
    level=0 if lossless else psnr(quality),
    reversible=lossless,
    codecformat="j2k",
    bitspersample=bits,
    mct=image.pixels.shape[2] == 3,
    resolutions=_resolutions(pixels.shape),
    numthreads=os.cpu_count() or 1,
  )
  return bytes(data), bits


def _resolutions(shape: tuple[int, ...]) -> int:
  """Returns how often a picture is halved, and one: six, if it is so large."""
  return max(1, min(6, min(shape[:2]).bit_length()))


def psnr(quality: int) -> int:
  """Returns what a quality means here, in decibels.

  >>> psnr(95), psnr(50)
  (48, 35)
  """
  return 20 + 3 * quality // 10
