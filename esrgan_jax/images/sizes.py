"""How large a picture is, by its header alone."""

from __future__ import annotations

import os
import pathlib
import struct
from typing import BinaryIO

from esrgan_jax.images import directories, heif, zarr_arrays
from esrgan_jax.images.decoders import exr, jp2, jxl, pnm, tga

_HEAD = 2**16
_MOST_ITEMS = 2**20  # Bytes in front of a picture, in files of boxes.
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_MOST_SEGMENTS = 1000
_MOST_DIRECTORIES = 10


def read_size(path: str | os.PathLike) -> tuple[int, int] | None:
  """Tells an image's size from its header, without a promise.

  A few kilobytes are read, and nothing is checked: this is for estimates.

  Args:
    path: The file.

  Returns:
    Width and height as they are stored, before EXIF turns them; None if the
    file is no image that `read_image` reads, or there is none.

  >>> import tempfile
  >>> import numpy as np
  >>> from esrgan_jax import images
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file = os.path.join(folder, "grey.webp")
  ...   grey = images.Image(np.zeros((2, 3, 1), np.uint8))
  ...   _ = images.write_image(file, grey)
  ...   read_size(file)
  (3, 2)
  """
  try:
    if zarr_arrays.is_zarr(path):
      return zarr_arrays.read_size(pathlib.Path(path))
    if not os.path.isfile(path):
      return None
    with open(path, "rb") as file:
      return size_of(file)
  except (OSError, ValueError):
    return None


def size_of(file: BinaryIO) -> tuple[int, int] | None:
  """As `read_size`, of an open file, whose position changes."""
  try:
    width, height = _size(file)
  except (OSError, ValueError, LookupError, struct.error):
    return None
  return (width, height) if width > 0 and height > 0 else None


def _size(file: BinaryIO) -> tuple[int, int]:
  head = file.read(_HEAD)
  if head.startswith(b"\x89PNG"):
    return struct.unpack_from(">II", head, 16)
  if head.startswith(b"GIF8"):
    return struct.unpack_from("<HH", head, 6)
  if head.startswith(b"\xff\xd8\xff"):
    return jpeg_frame(file)[:2]
  if head.startswith(b"BM"):
    core = head[14] == 12
    width, height = struct.unpack_from("<HH" if core else "<ii", head, 18)
    return width, abs(height)
  if head[8:12] == b"WEBP":
    return _webp_size(head)
  if head.startswith(exr.SIGNATURE):
    return exr.size_of(head)
  if head.startswith((jxl.STREAM, jxl.CONTAINER)):
    return jxl.size_of(head + file.read(_MOST_ITEMS))
  if head.startswith((jp2.STREAM, jp2.BOXES)):
    return jp2.size_of(head)
  if head[4:8] == b"ftyp":
    return heif.size_of(head + file.read(_MOST_ITEMS))
  if head.startswith(b"qoif"):
    return struct.unpack_from(">II", head, 4)
  if pnm.is_pnm(head):
    found = pnm.parse_header(head)
    return found.width, found.height
  if head[:2] not in (b"II", b"MM"):
    return _tga_size(file, head)
  return _tiff_size(file, head)


def _tga_size(file: BinaryIO, head: bytes) -> tuple[int, int]:
  file.seek(max(0, file.seek(0, 2) - tga.FOOTER_BYTES))
  suffix = os.path.splitext(getattr(file, "name", ""))[1]
  if not tga.is_tga(head, file.read(), suffix):
    raise ValueError("no header")
  found = tga.parse_header(head)
  return found.width, found.height


def jpeg_frame(file: BinaryIO) -> tuple[int, int, int]:
  """Returns width, height and components of a JPEG."""
  at = 2
  for _ in range(_MOST_SEGMENTS):
    file.seek(at)
    fill, marker, length = struct.unpack(">BBH", file.read(4))
    if marker in _FRAMES:
      height, width, count = struct.unpack(">xHHB", file.read(6))
      return width, height, count
    # Any number of 0xFF may precede a marker.
    at += 1 if marker == 0xFF else 2 + length
    if fill != 0xFF:
      break
  raise ValueError("no header")


def _webp_size(head: bytes) -> tuple[int, int]:
  if len(head) < 30:
    raise ValueError("no header")
  if head[12:16] == b"VP8X":
    sides = (int.from_bytes(head[at : at + 3], "little") for at in (24, 27))
    width, height = (side + 1 for side in sides)
  elif head[12:16] == b"VP8L":
    (bits,) = struct.unpack_from("<I", head, 21)
    width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
  else:
    width, height = (v & 0x3FFF for v in struct.unpack_from("<HH", head, 26))
  return width, height


def _tiff_size(file: BinaryIO, head: bytes) -> tuple[int, int]:
  layout, offset = directories.layout_of(head)
  for _ in range(_MOST_DIRECTORIES):
    file.seek(offset)
    # As if the directory, whose short values are in it, were all of the file.
    data = bytes(8) + file.read(_HEAD)
    places, offset = directories.read_directory(data, 8, layout)
    kind, width, height = (
      directories.integers(
        directories.value_of(data, places.get(tag)), layout.order
      )
      for tag in (254, 256, 257)
    )
    if not sum(kind[:1]) & 5:  # No preview, no mask.
      return width[0], height[0]
  raise ValueError("no picture")
