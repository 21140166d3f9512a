"""How large a picture is once EXIF has turned it, by its headers alone."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

from esrgan_jax.images import directories, limits
from esrgan_jax.images import metadata as meta
from esrgan_jax.images.sizes import read_size

_ORIENTATION = 274
_HEAD = 2**16
_MOST_PIECES = 1000


def read_upright_size(path: str | os.PathLike) -> tuple[int, int] | None:
  """Tells an image's size as it is seen, from its headers, without a promise.

  As `read_size`, for names and plans: what it says is a claim of the file's.

  Args:
    path: The file.

  Returns:
    Width and height, sides swapped where EXIF turns the picture by a right
    angle; None as for `read_size`.

  >>> import tempfile
  >>> from PIL import Image as PilImage
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file, exif = os.path.join(folder, "turned.jpg"), PilImage.Exif()
  ...   exif[274] = 6
  ...   PilImage.new("L", (3, 2)).save(file, exif=exif)
  ...   read_size(file), read_upright_size(file)
  ((3, 2), (2, 3))
  """
  size = read_size(path)
  if size is None:
    return None
  turn = 1
  try:
    with open(path, "rb") as file:
      turn = _turn(file)
  except (OSError, ValueError, IndexError, struct.error):
    pass  # As where there is no EXIF.
  return size[::-1] if turn in (5, 6, 7, 8) else size


def _turn(file: BinaryIO) -> int:
  head = file.read(16)
  if head[:2] in (b"II", b"MM"):
    return _tiff_turn(file, head)
  if head.startswith(b"\xff\xd8\xff"):
    blocks = _jpeg_blocks(file)
  elif head.startswith(b"\x89PNG"):
    blocks = _chunks(file, 8, ">I4s", b"eXIf", 12)
  elif head[8:12] == b"WEBP":
    blocks = _chunks(file, 12, "<4sI", b"EXIF", 8)
  else:
    return 1
  block = next(blocks, None)
  return meta.orientation_of(meta.load_exif(block))


def _jpeg_blocks(file: BinaryIO) -> Iterator[bytes]:
  at = 2
  for _ in range(_MOST_PIECES):
    file.seek(at)
    fill, marker, length = struct.unpack(">BBH", file.read(4))
    if fill != 0xFF or marker == 0xDA:
      return
    if marker == 0xE1 and (body := file.read(length - 2)).startswith(b"Exif\0"):
      yield body
    at += 1 if marker == 0xFF else 2 + length


def _chunks(
  file: BinaryIO, at: int, layout: str, wanted: bytes, extra: int
) -> Iterator[bytes]:
  """Bodies of chunks of one kind, `extra` bytes of each being none of it."""
  for _ in range(_MOST_PIECES):
    file.seek(at)
    fields = struct.unpack(layout, file.read(8))
    kind, length = fields if isinstance(fields[0], bytes) else fields[::-1]
    if kind == wanted and length <= limits.MAX_METADATA:
      yield file.read(length)
    at += extra + length
    if layout.startswith("<"):
      at += length % 2  # RIFF's are even.


def _tiff_turn(file: BinaryIO, head: bytes) -> int:
  layout, offset = directories.layout_of(head)
  file.seek(offset)
  data = bytes(8) + file.read(_HEAD)
  places, _ = directories.read_directory(data, 8, layout)
  place = places.get(_ORIENTATION)
  turn = directories.integers(directories.value_of(data, place), layout.order)
  return turn[0] if turn else 1
