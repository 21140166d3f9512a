"""Animated PNG, of any depth, frame by frame."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import BinaryIO

from esrgan_jax.images.encoders import changes, timing
from esrgan_jax.images.encoders.png import packed_bands, write_chunk, write_head
from esrgan_jax.images.pixels import Image


def write_apng(
  file: BinaryIO,
  images: Iterable[Image],
  durations: Sequence[Fraction],
  loop: int,
) -> None:
  """Writes an animated PNG; the first frame is what other programs show."""
  number = 0
  parts = changes.cut(images)
  for duration, (image, left, top) in zip(durations, parts, strict=True):
    if number == 0:
      write_head(file, image)
      control = struct.pack(">II", len(durations), min(loop, 2**31 - 1))
      write_chunk(file, b"acTL", control)
    height, width = image.pixels.shape[:2]
    control = struct.pack(">IIIII", number, width, height, left, top)
    # Nothing is disposed of; what was there is replaced.
    control += struct.pack(">HHBB", *timing.as_ratio(duration), 0, 0)
    write_chunk(file, b"fcTL", control)
    number += 1
    for packed in packed_bands(image):
      if number == 1:
        write_chunk(file, b"IDAT", packed)
      else:
        write_chunk(file, b"fdAT", struct.pack(">I", number), packed)
        number += 1
  write_chunk(file, b"IEND", b"")
