"""What is wrong with a file, and what is not."""

from __future__ import annotations

import mmap

from esrgan_jax.video.errors import VideoError

__all__ = ["cut", "damaged", "is_filling"]


def cut(size: int, wanted: int) -> VideoError:
  """Returns the error of a file that has fewer bytes than it should.

  >>> cut(26, 99)
  VideoError('damaged or cut short (26 bytes of 99)')
  """
  return VideoError(f"damaged or cut short ({size} bytes of {wanted})")


def damaged(at: int) -> VideoError:
  """Returns the error of one that does not go on at a byte.

  >>> damaged(26)
  VideoError('damaged or cut short (at byte 26)')
  """
  return VideoError(f"damaged or cut short (at byte {at})")


def is_filling(data: mmap.mmap | bytes, at: int) -> bool:
  """Tells whether a file has nothing but zeros from there on.

  >>> is_filling(b"abc" + bytes(9), 3), is_filling(b"abc", 2)
  (True, False)
  """
  return not any(
    data[n : n + 2**20].strip(b"\0") for n in range(at, len(data), 2**20)
  )
