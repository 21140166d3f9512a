"""WebP: its chunks are read here, its pixels by libwebp."""

from __future__ import annotations

import dataclasses
import fractions
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from esrgan_jax.images import limits
from esrgan_jax.images.animation import CLEAR, KEEP, Animation, Patch
from esrgan_jax.images.assembly import Found, refuse_frames, split_alpha
from esrgan_jax.images.limits import MAX_METADATA
from esrgan_jax.images.metadata import load_exif

_METADATA = (b"ICCP", b"EXIF", b"XMP ")
_OF_PIXELS = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
_CUT = b""  # No chunk's name.
_ALPHA = 0x10  # A flag of VP8X.


@dataclasses.dataclass
class _Frame:
  """One picture: its size, its place on the canvas, and its chunks."""

  width: int = 0
  height: int = 0
  left: int = 0
  top: int = 0
  kind: bytes = b""
  alpha: bytes | memoryview = b""
  pixels: bytes | memoryview = b""


def read_webp(data: bytes, max_pixels: int) -> Found:
  """Reads a WebP of one picture."""
  found = {}
  samples = decode(data, max_pixels, max_pixels, found=found)
  pixels, alpha = split_alpha(samples)
  return Found(format="WEBP", pixels=pixels, alpha=alpha, **_fields(found))


def read_webp_frames(
  data: bytes | memoryview, max_pixels: int
) -> Animation | None:
  """Finds an animation's frames; None if there is one picture.

  The canvas is transparent at first, as browsers have it; nobody goes by the
  background that the file names.
  """
  found: dict[bytes, bytes] = {}
  contents = _read_contents(memoryview(data), max_pixels, found)
  if contents.still.pixels or len(contents.frames) < 2:
    return None
  if contents.canvas is None:
    raise ValueError("no canvas")

  def decode(patch: Patch) -> np.ndarray:
    import imagecodecs

    frame = patch.data
    packed = len(frame.pixels) + len(frame.alpha)
    limits.check_claim(
      frame.width,
      frame.height,
      packed,
      max_pixels,
      ratio=limits.DENSE_RATIO,
    )
    return imagecodecs.webp_decode(_still(frame), hasalpha=True)

  width, height = contents.canvas
  animation = Animation(
    format="WEBP",
    width=width,
    height=height,
    loop=contents.loop,
    patches=[_read_patch(body) for body in contents.frames],
    decode=decode,
    found=_fields(found),
  )
  animation.check(len(data), max_pixels)
  return animation


def _read_patch(body: memoryview) -> Patch:
  """Reads a frame of an animation, and what is done with it."""
  frame = _read_frame(body)
  if not frame.pixels:
    raise ValueError("a frame without pixels")
  flags = body[15]
  return Patch(
    left=frame.left,
    top=frame.top,
    width=frame.width,
    height=frame.height,
    duration=fractions.Fraction(_uint24(body, 12)),
    dispose=CLEAR if flags & 1 else KEEP,
    # VP8L says in its header whether it has some.
    opaque=not (frame.pixels[4] & 16 if frame.kind == b"VP8L" else frame.alpha),
    blend=not flags & 2,
    data=frame,
  )


def _fields(found: Mapping[bytes, bytes]) -> dict[str, Any]:
  """Returns what a `Found` has besides the picture."""
  return {
    "icc_profile": found.get(b"ICCP"),
    "exif": load_exif(found.get(b"EXIF")),
    "xmp": found.get(b"XMP "),
    "notes": ("its last chunk is damaged, and left out",)
    if _CUT in found
    else (),
  }


class _Contents(NamedTuple):
  """What a file holds: its canvas, its frames' bodies, or one picture."""

  canvas: tuple[int, int] | None
  frames: list[memoryview]
  still: _Frame
  loop: int


def _read_contents(
  view: memoryview, area: int, found: dict[bytes, bytes] | None
) -> _Contents:
  """Walks through the chunks; `found` receives metadata."""
  (size,) = struct.unpack_from("<I", view, 4)
  if size + 8 > len(view):
    raise ValueError(f"{len(view)} of {size + 8} bytes")
  canvas, frames, still, loop = None, [], _Frame(), 0
  for kind, body in _chunks(view[12 : size + 8]):
    if kind == _CUT:
      if found is not None:
        found[_CUT] = b""
    elif kind == b"VP8X" and canvas is None:
      canvas = _uint24(body, 4) + 1, _uint24(body, 7) + 1
      limits.check_size(*canvas, area)
    elif kind == b"ANMF":
      frames.append(body)
    elif kind == b"ANIM":
      (loop,) = struct.unpack_from("<H", body, 4)
    elif found is not None and kind in _METADATA:
      if kind not in found and len(body) <= MAX_METADATA:
        found[kind] = bytes(body)
    else:
      _take(still, kind, body)
  return _Contents(canvas, frames, still, loop)


def decode(
  data: bytes | memoryview,
  area: int,
  max_pixels: int,
  *,
  alpha: bool | None = None,
  found: dict[bytes, bytes] | None = None,
) -> np.ndarray:
  """Decodes a WebP file.

  Args:
    data: The file.
    area: Most pixels of the canvas.
    max_pixels: What the file's bytes are held against.
    alpha: Whether to return alpha; None: if there is some.
    found: Receives metadata, by chunk.

  Returns:
    uint8 `[H, W, 3 or 4]`.
  """
  import imagecodecs

  canvas, frames, still, _ = _read_contents(memoryview(data), area, found)
  refuse_frames(len(frames), "frames")
  frame = _read_frame(frames[0]) if frames and not still.pixels else still
  if not frame.pixels:
    raise ValueError("no picture in it")
  limits.check_size(frame.width, frame.height, area)
  if canvas is None:
    canvas = frame.width, frame.height
  if (
    frame.left + frame.width > canvas[0]
    or frame.top + frame.height > canvas[1]
    or (not frames and canvas != (frame.width, frame.height))
  ):
    raise ValueError("a picture of another size than its canvas")
  packed = len(frame.pixels) + len(frame.alpha)
  limits.check_claim(*canvas, packed, max_pixels, ratio=limits.DENSE_RATIO)
  samples = imagecodecs.webp_decode(_still(frame), hasalpha=alpha)
  if samples.shape[:2] != (frame.height, frame.width):
    raise ValueError("a picture of two sizes")
  if canvas == (frame.width, frame.height):
    return samples
  return _placed(frame, samples, canvas)


def _chunks(view: memoryview) -> Iterator[tuple[bytes, memoryview]]:
  """Yields name and body of each chunk; `_CUT` for a last one of no need."""
  at, count = 0, 0
  while at + 8 <= len(view):
    limits.check_pieces(count := count + 1, "chunks")
    kind, size = struct.unpack_from("<4sI", view, at)
    at += 8
    if at + size > len(view):
      if kind in _OF_PIXELS:
        raise ValueError("a chunk beyond the end")
      yield _CUT, view[at:]
      return
    yield kind, view[at : at + size]
    at += size + size % 2


def _take(frame: _Frame, kind: bytes, body: memoryview) -> None:
  """Notes a chunk of pixels; of several, the first counts."""
  if kind == b"ALPH" and not frame.pixels:
    frame.alpha = body
  elif kind == b"VP8 " and not frame.pixels:
    # RFC 6386, 9.1; 14 bits of each are the size.
    frame.width, frame.height = (
      v & 0x3FFF for v in struct.unpack_from("<HH", body, 6)
    )
    frame.kind, frame.pixels = kind, body
  elif kind == b"VP8L" and not frame.pixels:
    (bits,) = struct.unpack_from("<I", body, 1)
    frame.width, frame.height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    frame.kind, frame.pixels = kind, body


def _read_frame(body: memoryview) -> _Frame:
  """Reads where a frame lies, and the first picture in it."""
  frame = _Frame(left=2 * _uint24(body, 0), top=2 * _uint24(body, 3))
  for kind, part in _chunks(body[16:]):
    _take(frame, kind, part)
  return frame


def _still(frame: _Frame) -> bytes:
  """Returns a file of nothing but one frame."""
  chunks = [(frame.kind, frame.pixels)]
  if frame.kind == b"VP8 " and len(frame.alpha):
    sides = (
      v.to_bytes(3, "little") for v in (frame.width - 1, frame.height - 1)
    )
    extended = struct.pack("<B3x", _ALPHA) + b"".join(sides)
    chunks = [(b"VP8X", extended), (b"ALPH", frame.alpha), *chunks]
  parts = [b"WEBP"]
  for kind, body in chunks:
    parts += [kind, struct.pack("<I", len(body)), body, bytes(len(body) % 2)]
  body = b"".join(parts)
  return b"RIFF" + struct.pack("<I", len(body)) + body


def _placed(
  frame: _Frame, samples: np.ndarray, canvas: tuple[int, int]
) -> np.ndarray:
  """Puts a frame on a transparent canvas."""
  width, height = canvas
  rows = slice(frame.top, frame.top + frame.height)
  columns = slice(frame.left, frame.left + frame.width)
  whole = np.zeros((height, width, 4), np.uint8)
  whole[rows, columns, 3] = 255
  whole[rows, columns, : samples.shape[2]] = samples
  return whole


def _uint24(body: memoryview, at: int) -> int:
  """Reads three bytes, the lowest first."""
  if at + 3 > len(body):
    raise ValueError("a chunk that is cut short")
  return int.from_bytes(body[at : at + 3], "little")
