"""GIF: its blocks are read here, its pixels by giflib."""

from __future__ import annotations

import fractions
import struct
from typing import NamedTuple

import numpy as np

from esrgan_jax.images import limits
from esrgan_jax.images.animation import CLEAR, KEEP, RESTORE, Animation, Patch
from esrgan_jax.images.assembly import Found, from_palette, refuse_frames
from esrgan_jax.images.notes import listed
from esrgan_jax.text import printable

# Most pixels that LZW makes of a byte: 4096 by 12 bits.
_RATIO = 2731
_EXTENSION, _PICTURE, _END = 0x21, 0x2C, 0x3B
_CONTROL = 0xF9
# Some programs leave the mark out, and some copies end too early.
_NOT_ENDED = "it has no end mark: frames may be missing"
_WORDS = {0xFE: "comment", 1: "text over the picture"}
# Two names of the extension that says how often to play.
_LOOPS = {b"\xff\x0bNETSCAPE2.0", b"\xff\x0bANIMEXTS1.0"}


class _Frame(NamedTuple):
  """A frame's place on the canvas, what is done with it, and its data."""

  left: int
  top: int
  width: int
  height: int
  interlaced: bool
  palette: np.ndarray | None
  control: _Control
  data: memoryview

  @property
  def is_grey(self) -> bool:
    """Whether it shows its indices."""
    return self.palette is None or not len(self.palette)

  @property
  def transparent(self) -> int | None:
    """The index that lets shine through what lies below, if one does."""
    return self.control.transparent


class _Control(NamedTuple):
  """What is said of a frame before it; times in hundredths of a second."""

  dispose: int = 0
  delay: int = 0
  transparent: int | None = None


class _Contents(NamedTuple):
  """What a file holds."""

  width: int
  height: int
  frames: list[_Frame]
  loop: int
  notes: tuple[str, ...]


def read_gif(data: bytes, max_pixels: int) -> Found:
  """Reads a GIF of one frame."""
  contents = _read_contents(memoryview(data), max_pixels)
  width, height, frames = contents[:3]
  refuse_frames(len(frames), "frames")
  (frame,) = frames
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
  if frame.is_grey:
    pixels = indices[..., None]
  else:
    pixels = from_palette(frame.palette, indices)
  return Found(format="GIF", pixels=pixels, alpha=alpha, notes=contents.notes)


def read_gif_frames(
  data: bytes | memoryview, max_pixels: int
) -> Animation | None:
  """Finds a GIF's frames; None if it is one picture.

  What no frame has drawn is transparent, as browsers have it; nobody goes by
  the background that the file names.
  """
  view = memoryview(data)
  width, height, frames, loop, notes = _read_contents(view, max_pixels)
  if len(frames) == 1:
    return None
  grey = all(frame.is_grey for frame in frames)
  greys = np.arange(256, dtype=np.uint8)[:, None].repeat(1 if grey else 3, 1)

  def decode(patch: Patch) -> np.ndarray:
    frame = patch.data
    colours = greys if frame.is_grey else frame.palette
    alpha = np.full((256, 1), 255, np.uint8)
    if frame.transparent is not None:
      alpha[frame.transparent] = 0
    return from_palette(np.hstack([colours, alpha]), _decode(frame))

  patches = [
    Patch(
      left=frame.left,
      top=frame.top,
      width=frame.width,
      height=frame.height,
      duration=fractions.Fraction(10 * frame.control.delay),
      dispose={2: CLEAR, 3: RESTORE}.get(frame.control.dispose, KEEP),
      opaque=frame.transparent is None,
      blend=True,
      data=frame,
    )
    for frame in frames
  ]
  animation = Animation(
    format="GIF",
    width=width,
    height=height,
    loop=loop,
    patches=patches,
    decode=decode,
    notes=notes,
  )
  animation.check(len(view), max_pixels)
  return animation


def _read_contents(view: memoryview, max_pixels: int) -> _Contents:
  """Finds the frames, and how large the canvas must be for all of them."""
  width, height, flags = struct.unpack_from("<HHB", view, 6)
  palette, at = _palette(view, 13, flags)
  control, frames, pieces, loop = _Control(), [], 0, 1
  others: dict[str, None] = {}
  while at < len(view) and view[at] != _END:
    if view[at] == _EXTENSION:
      head = bytes(view[at + 1 : at + 19])
      if head[:2] == bytes((_CONTROL, 4)):
        flags, delay, index = struct.unpack_from("<BHB", head, 2)
        control = _Control(flags >> 2 & 7, delay, index if flags & 1 else None)
      elif head[:13] in _LOOPS and head[13:15] == b"\3\1":
        # What is stated are the repetitions.
        (times,) = struct.unpack_from("<H", head, 15)
        loop = times + 1 if times else 0
      elif head[:1] == b"\xff":
        name = head[2:13].decode("latin-1").strip(" \0")
        others[f"extension {printable(name)}"] = None
      elif head[0] in _WORDS:
        others[_WORDS[head[0]]] = None
      at, blocks = _after_blocks(view, at + 2)
    elif view[at] == _PICTURE:
      *place, flags = struct.unpack_from("<HHHHB", view, at + 1)
      own, at = _palette(view, at + 10, flags)
      end, blocks = _after_blocks(view, at + 1)
      frame = _Frame(
        *place,
        interlaced=bool(flags & 64),
        palette=palette if own is None else own,
        control=control,
        data=view[at:end],
      )
      limits.check_size(frame.width, frame.height, max_pixels)
      area = frame.width * frame.height
      limits.check_bits(
        frame.width, frame.height, 8 * -(-area // _RATIO), len(frame.data)
      )
      width = max(width, frame.left + frame.width)
      height = max(height, frame.top + frame.height)
      frames.append(frame)
      control, at = _Control(), end
    else:
      raise ValueError(f"a block of type {view[at]}")
    limits.check_pieces(pieces := pieces + blocks, "blocks", len(view))
  if not frames:
    raise ValueError("no picture in it")
  limits.check_size(width, height, max_pixels)
  verb = "are" if len(others) > 1 else "is"
  notes = [f"its {listed(others)} {verb} left out"] if others else []
  notes += [] if at < len(view) else [_NOT_ENDED]
  return _Contents(width, height, frames, loop, tuple(notes))


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
    limits.check_pieces(count := count + 1, "blocks", len(view))
  return at + 1, count


def _decode(frame: _Frame) -> np.ndarray:
  """Decodes a frame's indices, `[height, width]`."""
  import imagecodecs

  size = frame.width, frame.height
  head = b"GIF89a" + struct.pack("<HHBBB", *size, 0, 0, 0)
  head += struct.pack("<BHHHHB", _PICTURE, 0, 0, *size, 64 * frame.interlaced)
  file = b"".join((head, frame.data, bytes((_END,))))
  return imagecodecs.gif_decode(file, asrgb=False)
