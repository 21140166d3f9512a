"""GIF: its blocks are read here, its pixels by giflib."""

from __future__ import annotations

import dataclasses
import struct

import numpy as np

from esrgan_jax.images import limits
from esrgan_jax.images.assembly import Found, from_palette, refuse_frames

# Most pixels that LZW makes of a byte: 4096 by 12 bits.
_RATIO = 2731
_EXTENSION, _PICTURE, _END = 0x21, 0x2C, 0x3B
_CONTROL = 0xF9


@dataclasses.dataclass(frozen=True)
class _Frame:
  """A frame's place on the canvas, and its data."""

  left: int
  top: int
  width: int
  height: int
  interlaced: bool
  palette: np.ndarray | None
  transparent: int | None
  data: memoryview


def read_gif(data: bytes, max_pixels: int) -> Found:
  """Reads a GIF of one frame."""
  view = memoryview(data)
  width, height, frame = _read_frame(view, max_pixels)
  limits.check_claim(width, height, len(frame.data), max_pixels, ratio=_RATIO)
  indices = _decode(frame)
  if indices.shape != (height, width):
    fill = frame.transparent or 0
    whole = np.full((height, width), fill, np.uint8)
    rows = slice(frame.top, frame.top + frame.height)
    whole[rows, frame.left : frame.left + frame.width] = indices
    indices = whole
  alpha = None
  if frame.transparent is not None:
    alpha = np.where(indices == frame.transparent, 0, 255).astype(np.uint8)
  grey = frame.palette is None or not len(frame.palette)
  pixels = indices[..., None] if grey else from_palette(frame.palette, indices)
  return Found(format="GIF", pixels=pixels, alpha=alpha)


def _read_frame(view: memoryview, max_pixels: int) -> tuple[int, int, _Frame]:
  """Returns the canvas's width and height, and the only frame."""
  width, height, flags = struct.unpack_from("<HHB", view, 6)
  palette, at = _palette(view, 13, flags)
  transparent, frame, count, pieces = None, None, 0, 0
  while at < len(view) and view[at] != _END:
    if view[at] == _EXTENSION:
      if frame is None and bytes(view[at + 1 : at + 3]) == bytes((_CONTROL, 4)):
        seen, index = view[at + 3], view[at + 6]
        transparent = index if seen & 1 else None
      at, blocks = _after_blocks(view, at + 2)
    elif view[at] == _PICTURE:
      *place, flags = struct.unpack_from("<HHHHB", view, at + 1)
      own, at = _palette(view, at + 10, flags)
      end, blocks = _after_blocks(view, at + 1)
      if frame is None:
        frame = _Frame(
          *place,
          interlaced=bool(flags & 64),
          palette=palette if own is None else own,
          transparent=transparent,
          data=view[at:end],
        )
      count, at = count + 1, end
    else:
      raise ValueError(f"a block of type {view[at]}")
    limits.check_pieces(pieces := pieces + blocks, "blocks")
  if frame is None:
    raise ValueError("no picture in it")
  refuse_frames(count, "frames")
  limits.check_size(frame.width, frame.height, max_pixels)
  area = frame.width * frame.height
  limits.check_bits(
    frame.width, frame.height, 8 * -(-area // _RATIO), len(frame.data)
  )
  width = max(width, frame.left + frame.width)
  height = max(height, frame.top + frame.height)
  limits.check_size(width, height, max_pixels)
  return width, height, frame


def _palette(
  view: memoryview, at: int, flags: int
) -> tuple[np.ndarray | None, int]:
  """Reads a palette, if there is one; returns where it ends, too.

  A palette of all greys in their order is empty: what it shows is grey.
  """
  if not flags & 0x80:
    return None, at
  size = 2 << (flags & 7)
  colours = np.zeros((256, 3), np.uint8)
  colours[:size] = np.frombuffer(view, np.uint8, 3 * size, at).reshape(-1, 3)
  greys = np.arange(size, dtype=np.uint8)[:, None]
  if (colours[:size] == greys).all():
    colours = colours[:0]
  return colours, at + 3 * size


def _after_blocks(view: memoryview, at: int) -> tuple[int, int]:
  """Returns where a chain of blocks ends, and how many they are."""
  count = 1
  while size := view[at]:
    at += size + 1
    limits.check_pieces(count := count + 1, "blocks")
  return at + 1, count


def _decode(frame: _Frame) -> np.ndarray:
  """Decodes a frame's indices, `[height, width]`."""
  import imagecodecs

  size = frame.width, frame.height
  head = b"GIF89a" + struct.pack("<HHBBB", *size, 0, 0, 0)
  head += struct.pack("<BHHHHB", _PICTURE, 0, 0, *size, 64 * frame.interlaced)
  file = b"".join((head, frame.data, bytes((_END,))))
  return imagecodecs.gif_decode(file, asrgb=False)
