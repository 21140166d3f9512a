"""AVIF: the pixels by libavif, the container here."""

from __future__ import annotations

import os
from typing import BinaryIO

import numpy as np

from esrgan_jax.images import heif
from esrgan_jax.images.codecs import codec
from esrgan_jax.images.levels import narrowed
from esrgan_jax.images.pixels import Image

_SPEED = 6
_MOST_BITS = 12


def write_avif(
  file: BinaryIO, image: Image, quality: int, lossless: bool
) -> None:
  """Writes an AVIF file."""
  pixels, info = image.pixels, image.metadata
  if image.alpha is not None:
    pixels = np.concatenate([pixels, image.alpha[..., None]], axis=2)
  bits = 8
  if pixels.dtype == np.uint16:
    bits = 10 if info.bits in (9, 10) else _MOST_BITS
    pixels = narrowed(pixels, bits)
  data = codec("avif").encode(
    np.ascontiguousarray(pixels if pixels.shape[2] > 1 else pixels[..., 0]),
    # 100 is libavif's word for no loss.
    level=100 if lossless else min(quality, 99),
    speed=_SPEED,
    bitspersample=bits,
    numthreads=os.cpu_count() or 1,
  )
  file.write(_with_metadata(bytes(data), image))


def _with_metadata(data: bytes, image: Image) -> bytes:
  """Puts metadata into a file of libavif's."""
  info = image.metadata
  if info.icc_profile is info.exif is info.xmp is None:
    return data
  parsed = heif.parse(data)
  numbers = {old: new for new, old in enumerate(parsed.items, 1)}
  primary = numbers[parsed.primary]
  items = []
  for item in parsed.items.values():
    item.refers = [
      (kind, [numbers[t] for t in targets]) for kind, targets in item.refers
    ]
    items.append((item, parsed.bytes_of(item)))
  if info.icc_profile is not None:
    parsed.picture.properties.append(
      (b"colr", b"prof" + info.icc_profile, False)
    )
  about = [(b"cdsc", [primary])]
  if info.exif is not None:
    exif = heif.Item(kind=b"Exif", refers=about)
    items.append((exif, bytes(4) + info.exif))
  if info.xmp is not None:
    words = b"application/rdf+xml\0"
    items.append((heif.Item(kind=b"mime", words=words, refers=about), info.xmp))
  return heif.build(b"avif", b"avifmif1miaf", primary, items)
