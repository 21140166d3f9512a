"""What a picture is made of, by its header alone."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

from esrgan_jax.images.decoders import pnm
from esrgan_jax.images.sizes import jpeg_frame

__all__ = ["read_channels"]

_HEAD = 2**16
# PNG: colour type -> colour channels, alpha.
_PNG = {0: (1, False), 2: (3, False), 3: (3, False), 4: (1, True), 6: (3, True)}
_JPEG = {1: (1, False), 3: (3, False), 4: (3, False)}


def read_channels(path: str | os.PathLike) -> tuple[int, bool] | None:
  """Tells whether an image has colour and alpha, without a promise.

  A few kilobytes are read, and nothing is checked: this is for estimates.

  Args:
    path: The file.

  Returns:
    Colour channels, 1 or 3, and whether there is alpha, be it opaque; None
    where the header does not tell, or is of another format than PNG, JPEG and
    PNM.

  >>> import tempfile
  >>> import numpy as np
  >>> from esrgan_jax import images
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file = os.path.join(folder, "grey.png")
  ...   grey = images.Image(np.zeros((2, 3, 1), np.uint8))
  ...   _ = images.write_image(file, grey)
  ...   read_channels(file)
  (1, False)
  """
  try:
    if not os.path.isfile(path):
      return None
    with open(path, "rb") as file:
      return _channels(file)
  except (OSError, ValueError, LookupError, struct.error):
    return None


def _channels(file: BinaryIO) -> tuple[int, bool] | None:
  head = file.read(_HEAD)
  if head.startswith(b"\x89PNG"):
    count, alpha = _PNG[head[25]]
    return count, alpha or _has_transparent_colour(head)
  if head.startswith(b"\xff\xd8\xff"):
    return _JPEG.get(jpeg_frame(file)[2])
  if pnm.is_pnm(head) and head[:2] in (b"P1", b"P2", b"P4", b"P5"):
    return 1, False
  if pnm.is_pnm(head) and head[:2] in (b"P3", b"P6"):
    return 3, False
  return None


def _has_transparent_colour(head: bytes) -> bool:
  """Looks for a PNG's tRNS, which stands in front of its pixels."""
  at = 8
  while (kind := head[at + 4 : at + 8]) != b"IDAT":
    if kind == b"tRNS":
      return True
    at += 12 + struct.unpack_from(">I", head, at)[0]
  return False
