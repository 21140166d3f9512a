"""QOI: its header is read here, its pixels by the reference decoder."""

from __future__ import annotations

import mmap
import struct

from esrgan_jax.images import limits
from esrgan_jax.images.assembly import Found, split_alpha

_HEAD = 14
_END = bytes(7) + b"\1"
_LONGEST_RUN = 62  # Of one byte.


def look(data: bytes | mmap.mmap, max_pixels: int) -> tuple[int, int, int]:
  """Reads the header; raises if the pixels cannot all be there.

  Returns:
    Height, width and channels.
  """
  _, width, height, channels, _ = struct.unpack_from(">4sIIBB", data)
  limits.check_size(width, height, max_pixels)
  if channels not in (3, 4):
    raise ValueError(f"{channels} channels")
  # Of one that is cut short, the decoder repeats the last pixel.
  if data[-len(_END) :] != _END:
    raise ValueError("no end mark")
  needed = -(-width * height // _LONGEST_RUN)
  limits.check_bits(width, height, 8 * needed, len(data) - _HEAD - len(_END))
  return height, width, channels


def read_qoi(data: bytes, max_pixels: int) -> Found:
  """Reads a QOI file."""
  import imagecodecs

  shape = look(data, max_pixels)
  samples = imagecodecs.qoi_decode(data)
  if samples.shape != shape:
    raise ValueError(f"a picture of {list(samples.shape)}")
  pixels, alpha = split_alpha(samples)
  return Found(format="QOI", pixels=pixels, alpha=alpha)
