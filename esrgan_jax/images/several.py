"""Whether a file may have several pictures, by its first bytes."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

from esrgan_jax.images import directories

_HEAD = 2**16
_MOST_CHUNKS = 100


def may_have_frames(path: str | os.PathLike) -> bool:
  """Tells whether `count_frames` might find more than one, and is needed.

  It reads all of a file; this, some kilobytes.

  Args:
    path: The file.

  Returns:
    False where a file has one picture, or none.

  >>> import tempfile
  >>> import numpy as np
  >>> from esrgan_jax import images
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file = os.path.join(folder, "grey.webp")
  ...   grey = images.Image(np.zeros((2, 3, 1), np.uint8))
  ...   _ = images.write_image(file, grey)
  ...   may_have_frames(file)
  False
  """
  try:
    with open(path, "rb") as file:
      head = file.read(_HEAD)
      if head.startswith(b"GIF8"):
        return True
      if head.startswith(b"\x89PNG"):
        return _has_animation(file)
      if head[8:12] == b"WEBP":
        return head[12:16] == b"VP8X" and bool(head[20] & 2)
      if head[:2] in (b"II", b"MM"):
        return _has_next(file, head)
  except (OSError, ValueError, IndexError, struct.error):
    pass  # Whoever reads it says why.
  return False


def _has_animation(file: BinaryIO) -> bool:
  at = 8
  for _ in range(_MOST_CHUNKS):
    file.seek(at)
    length, kind = struct.unpack(">I4s", file.read(8))
    if kind in (b"acTL", b"IDAT"):
      return kind == b"acTL"
    at += 12 + length
  return True


def _has_next(file: BinaryIO, head: bytes) -> bool:
  layout, offset = directories.layout_of(head)
  file.seek(offset)
  _, following = directories.read_directory(
    bytes(8) + file.read(_HEAD), 8, layout
  )
  return following != 0
