"""GIF, whose frames have 256 colours of their own each, by Pillow."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import BinaryIO

import numpy as np
from PIL import Image as PilImage

from esrgan_jax.images.encoders import changes, timing
from esrgan_jax.images.pixels import Image, bands

_KEEP, _CLEAR = 1, 2


def write_gif(
  file: BinaryIO,
  images: Iterable[Image],
  durations: Sequence[Fraction],
  loop: int,
) -> None:
  """Writes a GIF of 8-bit frames.

  Without transparency, a frame is the part that changes. With it, frames are
  whole, and cleared one after the other: nothing else makes a pixel
  transparent again.
  """
  delays = timing.ticks(durations, 10, 65_535)
  parts = _parts(images)
  for number, (delay, (image, left, top)) in enumerate(
    zip(delays, parts, strict=True)
  ):
    height, width = image.pixels.shape[:2]
    if number == 0:
      file.write(b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0))
      if loop != 1:
        # What is stated are the repetitions.
        times = min(max(loop - 1, 0), 65_535)
        file.write(b"!\xff\x0bNETSCAPE2.0\3\1" + struct.pack("<HB", times, 0))
    indices, palette, clear = _quantised(image)
    flags = 4 * (_KEEP if image.alpha is None else _CLEAR)
    flags += clear is not None
    file.write(b"!\xf9\4" + struct.pack("<BHBB", flags, delay, clear or 0, 0))
    bits = max(1, (len(palette) - 1).bit_length())
    file.write(struct.pack("<BHHHH", 0x2C, left, top, width, height))
    file.write(struct.pack("<B", 0x80 | bits - 1))
    file.write(palette.tobytes().ljust(3 << bits, b"\0"))
    # Codes of nine bits at first, in blocks, without the last one's end.
    picture = PilImage.fromarray(np.ascontiguousarray(indices))
    file.write(b"\x08" + picture.tobytes("gif", "L") + b"\0")
  file.write(b";")


def _parts(images: Iterable[Image]) -> Iterator[tuple[Image, int, int]]:
  """Returns what is stored of each frame, its left and its top."""
  images = iter(images)
  for first in images:
    if first.alpha is None:
      yield from changes.cut(_chained(first, images))
    else:
      yield first, 0, 0


def _chained(first: Image, images: Iterator[Image]) -> Iterator[Image]:
  yield first
  del first
  yield from images


def _quantised(
  image: Image,
) -> tuple[np.ndarray, np.ndarray, int | None]:
  """Returns indices, their palette `[N, 3]`, and which is transparent."""
  pixels, alpha = image.pixels, image.alpha
  shown = None if alpha is None else alpha >= 128
  if pixels.shape[2] == 1:
    return _grey(pixels[..., 0], shown)
  if shown is not None and not shown.all():
    # What is not seen takes none of the colours.
    seen = pixels[shown][:1]
    pixels = np.where(shown[..., None], pixels, seen if len(seen) else 0)
  picture = PilImage.fromarray(np.ascontiguousarray(pixels))
  most = 256 if shown is None else 255
  found = picture.getcolors(most)
  if found is not None:
    colours = np.array(sorted(colour for _, colour in found), np.uint8)
    indices = _exact_indices(pixels, colours)
  else:
    # On photographs 2 dB nearer than median cut, and twenty times as fast.
    palette = picture.quantize(most, PilImage.Quantize.FASTOCTREE)
    colours = np.array(palette.getpalette(), np.uint8).reshape(-1, 3)[:most]
    indices = np.asarray(
      picture.quantize(palette=palette, dither=PilImage.Dither.FLOYDSTEINBERG)
    )
  if shown is None:
    return indices, colours, None
  clear = len(colours)
  colours = np.vstack([colours, np.zeros((1, 3), np.uint8)])
  return np.where(shown, indices, np.uint8(clear)), colours, clear


def _exact_indices(pixels: np.ndarray, colours: np.ndarray) -> np.ndarray:
  """Returns which of some colours, in their order, each pixel has."""

  def numbers(samples: np.ndarray) -> np.ndarray:
    return samples.astype(np.int32) @ np.array([65_536, 256, 1], np.int32)

  known = numbers(colours)
  indices = np.empty(pixels.shape[:2], np.uint8)
  for rows in bands(pixels):
    indices[rows] = np.searchsorted(known, numbers(pixels[rows]))
  return indices


def _grey(
  values: np.ndarray, shown: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, int | None]:
  """Keeps greys as they are, but for the rarest, which becomes transparency."""
  palette = np.arange(256, dtype=np.uint8).repeat(3).reshape(-1, 3)
  if shown is None:
    return values, palette, None
  # The last of them: mostly the same for all frames, as some programs want.
  counts = np.bincount(values[shown], minlength=256)
  clear = 255 - int(np.argmin(counts[::-1]))
  near = clear - 1 if clear else 1
  values = np.where(values == clear, np.uint8(near), values)
  values = np.where(shown, values, np.uint8(clear))
  return values, palette, clear
