"""JPEG XL: boxes and header are read here, the pixels by libjxl."""

from __future__ import annotations

import dataclasses
import mmap
import struct

import numpy as np

from esrgan_jax.images import boxes, h273, light, limits
from esrgan_jax.images.assembly import Found, split_alpha
from esrgan_jax.images.bits import Bits
from esrgan_jax.images.codecs import codec
from esrgan_jax.images.levels import widened
from esrgan_jax.images.limits import MAX_METADATA
from esrgan_jax.images.metadata import load_exif
from esrgan_jax.images.pixels import ImageError

STREAM = b"\xff\x0a"
CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
_MOST_HEADER = 2**16
# Width over height, by number.
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_ALPHA = 0
LINEAR, SRGB = 8, 13
# Of its own numbers of primaries, what is not as in H.273.
_PRIMARIES = {11: 12, 2: -1}


@dataclasses.dataclass(frozen=True)
class Header:
  """What is said before the first frame."""

  width: int  # As it is stored.
  height: int
  orientation: int
  animated: bool
  bits: int
  floats: bool
  extra: tuple[int, ...]  # Kinds of further channels.
  profile: bool
  grey: bool
  primaries: int
  curve: int
  curve_at: int  # Bits before the curve's number, behind the first two bytes.


def look(
  data: bytes | mmap.mmap, max_pixels: int
) -> tuple[memoryview, dict[bytes, bytes], Header]:
  """Reads boxes and header; raises if it is nothing that is read.

  Returns:
    The codestream, metadata by their boxes' kinds, and the header.
  """
  stream, found = unbox(data)
  head = parse_header(stream)
  limits.check_size(head.width, head.height, max_pixels)
  if head.floats:  # Of four bytes and more.
    limits.check_size(head.width, 2 * head.height, max_pixels)
  limits.check_claim(
    head.width, head.height, len(stream), max_pixels, ratio=limits.DENSE_RATIO
  )
  if head.animated:
    raise ImageError("is an animation; save its frames as PNG files first")
  if set(head.extra) - {_ALPHA} or len(head.extra) > 1:
    raise ImageError(
      "has channels beyond colour and alpha, which are not read; save it as PNG"
    )
  if not head.floats and head.bits > 16:
    raise ImageError(f"{head.bits}-bit integers are not read; save it as PNG")
  return stream, found, head


def read_jxl(data: bytes, max_pixels: int) -> Found:
  """Reads a JPEG XL file."""
  stream, found, head = look(data, max_pixels)
  samples = codec("jpegxl").decode(bytes(stream), index=0, numthreads=0)
  samples = samples if samples.ndim == 3 else samples[..., None]
  size = (head.height, head.width)
  if head.orientation > 4:
    size = size[::-1]
  channels = (1 if head.grey else 3) + len(head.extra)
  if samples.shape != (*size, channels):
    raise ValueError(f"a picture of {list(samples.shape)}")
  half = head.floats and head.bits == 16
  if head.floats:
    samples = samples.astype(np.float32)
  else:
    samples = widened(samples, head.bits)
  pixels, alpha = split_alpha(samples)
  if head.curve == LINEAR and not head.floats:
    pixels = light.shown_integers(pixels)
  profile, notes = _profile(head)
  bits = head.bits if head.bits not in (8, 16) and not head.floats else None
  return Found(
    format="JXL",
    pixels=pixels,
    alpha=alpha,
    icc_profile=profile,
    exif=load_exif(found.get(b"Exif", b"")[4:] or None),
    orientation=1,  # The decoder has turned it.
    xmp=found.get(b"xml "),
    bits=16 if half else bits if bits and bits > 8 else None,
    linear=head.floats and head.curve == LINEAR,
    notes=notes,
  )


def size_of(data: bytes) -> tuple[int, int]:
  """Returns width and height by a file's first bytes, as they are seen."""
  at, view = 0, memoryview(data)
  while data.startswith(CONTAINER):
    size, kind = struct.unpack_from(">I4s", view, at)
    if kind in (b"jxlc", b"jxlp"):
      at += (16 if size == 1 else 8) + 4 * (kind == b"jxlp")
      break
    at += max(size, 8)
  head = parse_header(view[at:])
  size = (head.width, head.height)
  return size[::-1] if head.orientation > 4 else size


def _profile(head: Header) -> tuple[bytes | None, tuple[str, ...]]:
  """Returns a profile of what is stated, and what is not kept."""
  if head.profile:
    return None, ("its colour profile is left out, as JPEG XL's is not read",)
  curve = head.curve if head.curve != LINEAR else SRGB
  stated = 1 if head.grey else _PRIMARIES.get(head.primaries, head.primaries)
  return h273.profile_of(stated, curve)


def unbox(
  data: bytes | mmap.mmap,
) -> tuple[memoryview, dict[bytes, bytes]]:
  """Returns the codestream, and metadata by their boxes' kinds."""
  view = memoryview(data)
  if view[: len(CONTAINER)] != CONTAINER:
    return view, {}
  parts, found = [], {}
  last = False
  for kind, body in boxes.walk(view):
    if kind == b"brob" and len(body) > 4:
      kind, body = bytes(body[:4]), _unpacked(body[4:])
    if kind == b"jxlc":
      parts, last = [body], True
    elif kind == b"jxlp" and not last:
      parts.append(body[4:])
      last = bool(body[0] & 128)
    elif kind in (b"Exif", b"xml ") and len(body) <= MAX_METADATA:
      found.setdefault(kind, bytes(body))
  if not last:
    raise ValueError("no end of the picture")
  return memoryview(b"".join(parts)), found


def _unpacked(body: memoryview) -> bytes:
  """Unpacks metadata; what cannot be, or is too large, is empty."""
  import imagecodecs

  try:
    return bytes(imagecodecs.brotli_decode(bytes(body), out=MAX_METADATA))
  except (RuntimeError, ValueError):
    return b""


def parse_header(stream: memoryview | bytes) -> Header:
  """Reads the header of a codestream."""
  if bytes(stream[:2]) != STREAM:
    raise ValueError("no header")
  bits = Bits(stream[2:_MOST_HEADER], lowest_first=True)
  width, height = _size(bits)
  orientation, animated = 1, False
  depth, extra = (8, False), []
  profile, grey, primaries, curve, curve_at = False, False, 1, SRGB, 0
  if not bits.flag():
    if bits.flag():
      orientation = bits.take(3) + 1
      if bits.flag():
        _size(bits)
      if bits.flag():
        _preview(bits)
      if animated := bits.flag():
        bits.one_of((100, 0), (1000, 0), (1, 10), (1, 30))
        bits.one_of((1, 0), (1001, 0), (1, 8), (1, 10))
        bits.one_of((0, 0), (0, 3), (0, 16), (0, 32))
        bits.flag()
    depth = _depth(bits)
    bits.flag()
    count = bits.one_of((0, 0), (1, 0), (2, 4), (1, 12))
    extra = [_extra(bits) for _ in range(count)]
    bits.flag()
    profile, grey, primaries, curve, curve_at = _colours(bits)
  return Header(
    width,
    height,
    orientation,
    animated,
    *depth,
    tuple(extra),
    profile,
    grey,
    primaries,
    curve,
    curve_at,
  )


def _size(bits: Bits) -> tuple[int, int]:
  small = bits.flag()

  def side() -> int:
    if small:
      return 8 * (bits.take(5) + 1)
    return bits.one_of((1, 9), (1, 13), (1, 18), (1, 30))

  height = side()
  ratio = bits.take(3)
  if ratio == 0:
    return side(), height
  across, down = _RATIOS[ratio - 1]
  return height * across // down, height


def _preview(bits: Bits) -> None:
  """Skips the size of a preview."""
  by_eight = bits.flag()

  def side() -> None:
    if by_eight:
      bits.one_of((16, 0), (32, 0), (1, 5), (33, 9))
    else:
      bits.one_of((1, 6), (65, 8), (321, 10), (1345, 12))

  side()
  if bits.take(3) == 0:
    side()


def _depth(bits: Bits) -> tuple[int, bool]:
  """Returns the bits of samples, and whether they are floats."""
  if bits.flag():
    count = bits.one_of((32, 0), (16, 0), (24, 0), (1, 6))
    bits.take(4)
    return count, True
  return bits.one_of((8, 0), (10, 0), (12, 0), (1, 6)), False


def _enum(bits: Bits) -> int:
  return bits.one_of((0, 0), (1, 0), (2, 4), (18, 6))


def _extra(bits: Bits) -> int:
  """Returns the kind of a further channel."""
  if bits.flag():
    return _ALPHA
  kind = _enum(bits)
  _depth(bits)
  bits.one_of((0, 0), (3, 0), (4, 0), (1, 3))
  name = bits.one_of((0, 0), (0, 4), (16, 5), (48, 10))
  bits.take(8 * name)
  if kind == _ALPHA:
    bits.flag()
  elif kind == 2:
    bits.take(64)
  elif kind == 5:
    bits.one_of((1, 0), (0, 2), (3, 4), (19, 8))
  return kind


def _colours(bits: Bits) -> tuple[bool, bool, int, int, int]:
  """Returns whether there is a profile, it is grey; primaries, curve, place."""
  if bits.flag():
    return False, False, 1, SRGB, 0
  profile = bits.flag()
  space = _enum(bits)
  primaries, curve, at = 1, SRGB, 0
  if not profile and space != 2:

    def point() -> None:
      for _ in range(2):
        bits.one_of((0, 19), (524288, 19), (1048576, 20), (2097152, 21))

    if _enum(bits) == 2:
      point()
    if space != 1:
      primaries = _enum(bits)
      if primaries == 2:
        for _ in range(3):
          point()
    if bits.flag():
      curve = 0
      bits.take(24)
    else:
      at = bits.at
      curve = _enum(bits)
  return profile, space == 1, primaries, curve, at
