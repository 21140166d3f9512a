"""PNG: its chunks are read here, its pixels by libpng."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from esrgan_jax.images import limits
from esrgan_jax.images.assembly import Found, refuse_frames, split_alpha
from esrgan_jax.images.limits import MAX_METADATA
from esrgan_jax.images.metadata import load_exif

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Adam7: first row and column of each pass, and the steps.
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4))
_PASSES += ((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def read_png(data: bytes, max_pixels: int) -> Found:
  """Reads a PNG of one picture."""
  import imagecodecs

  header, pixels, packed = None, [_SIGNATURE], 0
  frames, first_frames = [], 0
  found = {}
  view = memoryview(data)
  for kind, start, end in _chunks(view):
    body = view[start + 8 : end - 4]
    if (kind == b"IHDR") != (header is None):
      raise ValueError("no header" if header is None else "two headers")
    if kind == b"IHDR":
      header = struct.unpack(">IIBBBBB", body)
      limits.check_size(*header[:2], max_pixels)
    if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT"):
      if kind == b"tRNS" and not _is_intact(view[start:end]):
        raise ValueError("a wrong checksum of its transparency")
      pixels.append(view[start:end])
      packed += len(body) if kind == b"IDAT" else 0
    elif kind == b"acTL" and len(body) == 8 and not packed:
      frames.append(struct.unpack_from(">I", body)[0])
    elif kind == b"fcTL" and not packed:
      first_frames += 1
    elif (
      kind in _METADATA
      and kind not in found
      and len(body) <= MAX_METADATA
      and _is_intact(view[start:end])
    ):
      text = _METADATA[kind](bytes(body))
      if text is not None:
        found[kind] = text
  if len(frames) == 1 and 0 < frames[0] < 2**31:  # Else it is none.
    # Without a frame's header before it, the picture is not one of them.
    refuse_frames(frames[0] + (not first_frames), "frames")
  if header is None:
    raise ValueError("no header")
  _check_packed(header, packed)
  # It makes alpha of a transparent colour by itself.
  samples = imagecodecs.png_decode(b"".join([*pixels, _END]))
  colour, alpha = split_alpha(samples)
  return Found(
    format="PNG",
    pixels=colour,
    alpha=alpha,
    icc_profile=found.get(b"iCCP"),
    exif=load_exif(found.get(b"eXIf")),
    xmp=found.get(b"iTXt"),
    dpi=found.get(b"pHYs"),
  )


def _chunks(view: memoryview) -> Iterator[tuple[bytes, int, int]]:
  """Yields kind, start and end of each chunk but the end mark."""
  at, count = len(_SIGNATURE), 0
  while at + 12 <= len(view):
    length, kind = struct.unpack_from(">I4s", view, at)
    end = at + 12 + length
    if kind == b"IEND":
      return
    if end > len(view):
      break
    limits.check_pieces(count := count + 1, "chunks")
    yield kind, at, end
    at = end
  raise ValueError("no end mark")


def _is_intact(chunk: memoryview) -> bool:
  """Tells whether a chunk's checksum is right."""
  (checksum,) = struct.unpack(">I", chunk[-4:])
  return zlib.crc32(chunk[4:-4]) == checksum


def _check_packed(header: tuple[int, ...], packed: int) -> None:
  """Refuses a picture of more bytes than deflate can have made so few of."""
  width, height, depth, colour, *_, interlace = header
  bits = depth * _SAMPLES.get(colour, 1)
  unpacked = 0
  for top, left, down, across in _PASSES if interlace else ((0, 0, 1, 1),):
    rows, columns = -(-(height - top) // down), -(-(width - left) // across)
    if rows > 0 and columns > 0:
      unpacked += rows * (1 + (columns * bits + 7) // 8)
  needed = -(-unpacked // limits.DEFLATE_RATIO)
  limits.check_bits(width, height, 8 * needed, packed)


# Metadata by chunk: bytes or numbers, empty if damaged, None if of no use.


def _inflate(packed: bytes) -> bytes:
  inflater = zlib.decompressobj()
  try:
    text = inflater.decompress(packed, MAX_METADATA)
  except zlib.error:
    return b""
  return text if inflater.eof else b""


def _profile(body: bytes) -> bytes:
  _, _, rest = body.partition(b"\0")
  return _inflate(rest[1:]) if rest[:1] == b"\0" else b""


def _xmp(body: bytes) -> bytes | None:
  keyword, _, rest = body.partition(b"\0")
  if keyword != b"XML:com.adobe.xmp" or len(rest) < 2:
    return None
  text = rest[2:].split(b"\0", 2)[-1]
  if rest[:1] == b"\0":
    return text
  return _inflate(text) if rest[1:2] == b"\0" else b""


def _dpi(body: bytes) -> tuple[float, float] | None:
  if len(body) != 9 or body[8] != 1:
    return None
  x, y = struct.unpack_from(">II", body)
  return x * 0.0254, y * 0.0254


_METADATA = {b"iCCP": _profile, b"eXIf": bytes, b"iTXt": _xmp, b"pHYs": _dpi}
