"""JPEG: its segments are read here, its pixels by libjpeg-turbo.

libjpeg takes what is missing for grey, or for detail that was never there, and
goes over the whole picture once more for each scan, however empty. So scans are
counted and weighed before, and afterwards it is proven that none ended early.
Markers are those of ITU-T T.81, table B.1.
"""

from __future__ import annotations

import dataclasses
import mmap
import re
import struct
import zlib
from typing import Any

import numpy as np

from esrgan_jax.images import limits, metadata, png_chunks
from esrgan_jax.images.assembly import Found, to_rgb
from esrgan_jax.images.limits import MAX_METADATA
from esrgan_jax.images.pixels import ImageError

_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_SOS, _DRI, _COMMENT = 0xDA, 0xDD, 0xFE
# Segments that are not for the result, and what they hold.
_LOST = (
  (0xE1, b"http://ns.adobe.com/xmp/extension/", "its extended XMP is"),
  (0xE2, b"MPF\0", "further pictures in it (a preview, a gain map) are"),
  (0xEB, b"JP", "its content credentials or the like (JUMBF) are"),
  (0xED, b"Photoshop 3.0\0", "its IPTC and resources of Photoshop are"),
)
# Baseline, extended, progressive, lossless; extended and progressive with
# arithmetic codes. The others are lossless ones that are hardly ever met.
_BASELINE, _EXTENDED, _PROGRESSIVE, _LOSSLESS = 0xC0, 0xC1, 0xC2, 0xC3
_ARITHMETIC = {0xC9: _EXTENDED, 0xCA: _PROGRESSIVE}
_FRAMES = {_BASELINE, _EXTENDED, _PROGRESSIVE, _LOSSLESS, *_ARITHMETIC}
_OTHER_FRAMES = {0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF}
# What a decoder needs of the rest: tables of Huffman codes, arithmetic
# conditions and quantisation, JFIF and Adobe.
_TABLES = {0xC4, 0xCC, 0xDB}
_ALONE = {0x01, *range(0xD0, 0xD8)}
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
# Passes over a picture that its scans may make in sum. libjpeg's script for
# progressive files makes 6 over the luminance, mozjpeg's longest 14.
_PASSES = 16
# Every picture may have the passes of one of this part of `max_pixels`.
_PIXELS_A_BLOCK = 1024
# Blocks of a further pass that a byte pays for.
_BLOCKS_A_BYTE = 4
# Put where a scan ends. Nobody reads it but a decoder that lacks data; what it
# then sees are long codes, of large numbers, and never zeros.
_PROBE = bytes((0xFE - n * n % 13) for n in range(512))


@dataclasses.dataclass
class _Component:
  """One colour of the frame.

  Attributes:
    across: Horizontal sampling factor.
    down: Vertical sampling factor.
    blocks: Of 8 x 8 samples (one sample, if lossless) in a scan of its own.
    missing: Bits of each coefficient that no scan has brought; None: all.
  """

  across: int
  down: int
  blocks: int = 0
  missing: list[int | None] = dataclasses.field(
    default_factory=lambda: [None] * 64
  )


@dataclasses.dataclass
class Frame:
  """A picture's header, and what its scans have shown so far."""

  kind: int
  width: int
  height: int
  components: dict[int, _Component]
  arithmetic: bool = False
  scans: int = 0
  work: int = 0  # Blocks gone over.
  needed: int = 0  # Bits at least.
  found: int = 0  # Bytes.

  @property
  def units(self) -> int:
    """Groups of blocks in a scan of several components."""
    side = 1 if self.kind == _LOSSLESS else 8
    across = max(c.across for c in self.components.values())
    down = max(c.down for c in self.components.values())
    return -(-self.width // (side * across)) * -(-self.height // (side * down))

  @property
  def blocks(self) -> int:
    """Blocks of all components."""
    return sum(c.blocks for c in self.components.values())


def read_jpeg(data: bytes, max_pixels: int) -> Found:
  """Reads a JPEG, of an MPO the first picture, which is the photo itself."""
  stream, frame, notes = inspect(data, max_pixels)
  samples = decode(stream, frame)
  if samples.ndim == 2:
    samples = samples[..., None]
  profile = _joined(notes.profile)
  if samples.shape[2] == 4:
    # Inverted, by Adobe's custom, which all follow.
    samples, profile = to_rgb("CMYK", np.invert(samples), profile), None
  exif = metadata.load_exif(b"".join(notes.exif))
  texts = ()
  if notes.comment is not None:
    texts = (png_chunks.text_chunk("Comment", notes.comment),)
  return Found(
    format="JPEG",
    pixels=samples,
    icc_profile=profile,
    exif=exif,
    xmp=notes.xmp,
    dpi=notes.dpi or metadata.dpi_of(exif),
    png_chunks=texts,
    notes=tuple(f"{what} left out" for what in notes.lost),
  )


@dataclasses.dataclass
class _Notes:
  """Metadata, as they lie in segments; and what is lost of them."""

  exif: list[bytes] = dataclasses.field(default_factory=list)
  xmp: bytes | None = None
  dpi: tuple[float, float] | None = None
  profile: list[bytes] = dataclasses.field(default_factory=list)
  comment: str | None = None
  lost: dict[str, None] = dataclasses.field(default_factory=dict)
  size: int = 0
  is_jfif: bool = False


def look(data: bytes | mmap.mmap, max_pixels: int) -> None:
  """Raises if a picture is not read, by its header, or has no end mark."""
  at, count, marker = 2, 0, None
  while marker != _SOS:
    limits.check_pieces(count := count + 1, "segments")
    marker, start, at = _segment(data, at)
    if marker == 0xD9:
      raise ValueError("no pixels")
    if _is_frame(marker):
      _read_frame(marker, memoryview(data)[start + 4 : at], max_pixels)
  if data.rfind(_EOI, at) < 0:
    raise ValueError("no end mark")


def _segment(
  data: bytes | memoryview | mmap.mmap, at: int
) -> tuple[int, int, int]:
  """Returns mark, start and end of the next segment."""
  mark = _MARKER.search(data, at)
  if mark is None:
    raise ValueError("no end mark")
  at, marker = mark.end(), data[mark.end() - 1]
  if marker == 0xD9 or marker in _ALONE:
    return marker, at - 2, at
  if at + 2 > len(data):
    raise ValueError("no end mark")
  (length,) = struct.unpack_from(">H", data, at)
  if marker == 0xD8 or length < 2 or at + length > len(data):
    raise ValueError("a damaged segment")
  return marker, at - 2, at + length


def _is_frame(marker: int) -> bool:
  """Tells whether a header of a picture follows; raises if of a rare kind."""
  if marker in _OTHER_FRAMES:
    raise ImageError(
      "a JPEG of a rare kind (hierarchical or lossless with arithmetic"
      " codes) is not read; save it as PNG"
    )
  return marker in _FRAMES


def inspect(
  data: bytes, max_pixels: int
) -> tuple[list[bytes | memoryview], Frame, _Notes]:
  """Reads a stream's segments up to its end mark, and weighs its scans.

  Args:
    data: The stream; what follows its end mark does not matter.
    max_pixels: Most pixels to accept.

  Returns:
    What a decoder needs, in parts (those of scans at the end of their data);
    the frame; the metadata.

  Raises:
    ImageError: If the picture is too large, of too many scans, or unusual.
    ValueError: If it is damaged or cut short.
  """
  view = memoryview(data)
  stream, notes, frame = [_SOI], _Notes(), None
  at, interval, count = 2, 0, 0
  while True:
    limits.check_pieces(count := count + 1, "segments")
    marker, start, at = _segment(data, at)
    if marker == 0xD9:
      break
    if marker in _ALONE:
      continue
    segment, body = view[start:at], view[start + 4 : at]
    if _is_frame(marker):
      if frame is not None:
        raise ValueError("two pictures in one")
      frame = _read_frame(marker, body, max_pixels)
    elif marker == _DRI:
      (interval,) = struct.unpack(">H", body)
    elif marker == _SOS:
      if frame is None:
        raise ValueError("pixels before the header")
      mark, begin = _MARKER.search(data, at), at
      at = len(data) if mark is None else mark.start()
      _weigh_scan(frame, body, view[begin:at], interval)
      # Without the 0xFF that may precede a marker, any number of them.
      stream += [segment, bytes(view[begin:at]).rstrip(b"\xff"), b""]
      continue
    elif marker not in _TABLES and not _is_for_decoder(marker, body):
      _take_note(notes, marker, body)
      continue
    if marker == 0xE0:
      notes.dpi, notes.is_jfif = _density(body), True
    stream.append(segment)
  if frame is None or not frame.scans:
    raise ValueError("no pixels")
  _check_scans(frame, max_pixels)
  return [*stream, _EOI], frame, notes


def _read_frame(marker: int, body: memoryview, max_pixels: int) -> Frame:
  """Reads a frame's header (T.81, B.2.2)."""
  precision, height, width, count = struct.unpack_from(">BHHB", body)
  if len(body) != 6 + 3 * count:
    raise ValueError("a damaged header")
  limits.check_size(width, height, max_pixels)
  if precision != 8 or count not in (1, 3, 4):
    raise ImageError(
      f"a JPEG of {count} components of {precision} bits is not read; save it"
      " as 8-bit grey or RGB"
    )
  components = {}
  for number, factors, _ in struct.iter_unpack("BBB", body[6:]):
    component = _Component(factors >> 4, factors & 15)
    if not 1 <= component.across <= 4 or not 1 <= component.down <= 4:
      raise ValueError("sampling factors that are none")
    components[number] = component
  if len(components) != count:
    raise ValueError("two components of one name")
  kind = _ARITHMETIC.get(marker, marker)
  frame = Frame(kind, width, height, components, marker in _ARITHMETIC)
  side = 1 if kind == _LOSSLESS else 8
  across = max(c.across for c in components.values())
  down = max(c.down for c in components.values())
  for component in components.values():
    columns = -(-width * component.across // across)
    rows = -(-height * component.down // down)
    component.blocks = -(-columns // side) * -(-rows // side)
  return frame


def _weigh_scan(
  frame: Frame, header: memoryview, data: memoryview, interval: int
) -> None:
  """Notes what a scan brings, and refuses it if it is too short for that."""
  count = header[0] if len(header) else 0
  if not 1 <= count <= 4 or len(header) != 4 + 2 * count:
    raise ValueError("a damaged scan")
  chosen = [frame.components.get(n) for n in header[1 : 1 + 2 * count : 2]]
  if None in chosen:
    raise ValueError("a scan of no component")
  first, last, bits = header[-3:]
  units = blocks = chosen[0].blocks
  if count > 1:
    units = frame.units
    blocks = units * sum(c.across * c.down for c in chosen)
  if frame.kind != _PROGRESSIVE:
    first, last, bits = 0, 63, 0
  elif not first <= last <= 63 or (first > 0 and count > 1):
    raise ValueError("a damaged scan")
  for component in chosen:
    component.missing[first : last + 1] = [bits & 15] * (last - first + 1)
  if frame.arithmetic:
    needed = 0
  elif frame.kind == _PROGRESSIVE:
    # A bit a block for its mean; 15 for 32,767 blocks without more.
    needed = blocks if first == 0 else 15 * (blocks // 32_767)
  else:
    # A code for the mean, one for the rest.
    needed = blocks if frame.kind == _LOSSLESS else 2 * blocks
  limits.check_bits(frame.width, frame.height, needed, len(data))
  restarts = len(_RESTART.findall(data))
  expected = -(-units // interval) - 1 if interval else 0
  # Some cameras end with one.
  if restarts - expected not in ((0, 1) if interval else (0,)):
    raise ValueError(f"{restarts} of {expected} restart markers")
  frame.scans += 1
  frame.work += blocks
  frame.found += len(data)


def _check_scans(frame: Frame, max_pixels: int) -> None:
  """Refuses scans that do not complete a picture, or are too many."""
  for component in frame.components.values():
    if any(component.missing):
      raise ValueError("scans that do not complete the picture")
  if frame.arithmetic:
    limits.check_claim(
      frame.width,
      frame.height,
      frame.found,
      max_pixels,
      ratio=limits.DENSE_RATIO,
    )
  free = _PASSES * max(frame.blocks, max_pixels // _PIXELS_A_BLOCK)
  free += _BLOCKS_A_BYTE * frame.found
  if frame.work > free:
    enough = -(-frame.work // _PASSES) * _PIXELS_A_BLOCK
    raise ImageError(
      f"{frame.scans} scans of {frame.width} x {frame.height} pixels in"
      f" {frame.found} bytes are too much work; if you trust the file, raise"
      f" max_pixels (upscale: --max-pixels) to {enough}"
    )


def _is_for_decoder(marker: int, body: memoryview) -> bool:
  """Tells whether a segment says how to decode colour."""
  name = bytes(body[:5])
  return (marker, name) in ((0xE0, b"JFIF\0"), (0xEE, b"Adobe"))


def _take_note(notes: _Notes, marker: int, body: memoryview) -> None:
  """Keeps a segment's metadata, up to a limit of all together."""
  text = bytes(body)
  if notes.size + len(text) > MAX_METADATA:
    notes.lost[f"metadata beyond {MAX_METADATA} bytes is"] = None
  elif marker == 0xE1 and text.startswith(b"Exif\0\0"):
    # A block of more than 64 KB goes on in the next segment.
    notes.exif.append(text[6:])
  elif marker == 0xE1 and text.startswith(_XMP):
    notes.xmp = text.removeprefix(_XMP)
  elif marker == 0xE2 and text.startswith(b"ICC_PROFILE\0"):
    notes.profile.append(text[12:])
  elif marker == _COMMENT and notes.comment is None:
    notes.comment = _text(text)
  else:
    for other, head, what in _LOST:
      if marker == other and text.startswith(head):
        notes.lost[what] = None
    return
  notes.size += len(text)


def _text(raw: bytes) -> str | None:
  """Returns a comment's text; None if there is none."""
  raw = raw.rstrip(b"\0")
  try:
    return raw.decode("utf-8") or None
  except UnicodeDecodeError:
    return raw.decode("latin-1")


def _density(body: memoryview) -> tuple[float, float] | None:
  """Returns JFIF's pixels an inch."""
  if len(body) < 12 or body[7] not in (1, 2):
    return None
  x, y = struct.unpack_from(">HH", body, 8)
  factor = 2.54 if body[7] == 2 else 1
  return factor * x, factor * y


def _joined(profile: list[bytes]) -> bytes | None:
  """Joins a profile's pieces (ICC.1, B.4); empty if one is missing."""
  if not profile:
    return None
  pieces = sorted(piece for piece in profile if len(piece) >= 2)
  numbers = [tuple(piece[:2]) for piece in pieces]
  count = len(pieces)
  if numbers != [(number, count) for number in range(1, count + 1)]:
    return b""
  return b"".join(piece[2:] for piece in pieces)


def decode(
  stream: list[bytes | memoryview], frame: Frame, **options: Any
) -> np.ndarray:
  """Decodes what `inspect` returned, if all of the picture is there.

  A scan that ends early is read as if zeros, or nothing, followed. That shows
  when all is decoded once more with something else behind each scan, which a
  decoder that lacks nothing passes over.
  """
  import imagecodecs

  samples = imagecodecs.jpeg8_decode(b"".join(stream), **options)
  if frame.arithmetic:
    return samples  # Whose encoders leave out zeros at the end.
  before = zlib.crc32(samples)
  probed = b"".join(part or _PROBE for part in stream)
  imagecodecs.jpeg8_decode(probed, out=samples, **options)
  if zlib.crc32(samples) != before:
    raise ValueError("a scan that ends early")
  return samples
