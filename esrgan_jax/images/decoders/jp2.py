"""JPEG 2000: boxes and main header are read here, the pixels by OpenJPEG."""

from __future__ import annotations

import dataclasses
import mmap
import struct

import numpy as np

from esrgan_jax.images import boxes, limits
from esrgan_jax.images.assembly import (
  Found,
  from_palette,
  to_rgb,
)
from esrgan_jax.images.codecs import codec
from esrgan_jax.images.levels import widened
from esrgan_jax.images.limits import MAX_METADATA
from esrgan_jax.images.metadata import load_exif
from esrgan_jax.images.pixels import ImageError

STREAM = b"\xff\x4f\xff\x51"
BOXES = b"\0\0\0\x0cjP  \r\n\x87\n"
XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
EXIF = b"JpgTiffExif->JP2"
_GEOTIFF = bytes.fromhex("b14bf8bd083d4b43a5ae8cd7d5a6ce03")
SRGB, GREY, _SYCC = 16, 17, 18
_MOST_COMPONENTS = 32
# Of a picture's precincts, times its layers; and of its blocks of code. Each
# costs memory whatever its bytes are. Sound files have some thousands.
_MOST_PACKETS = 2**21
_MOST_BLOCKS = 2**21
_COD, _COC, _SOT, _SOD, _EOC = 0xFF52, 0xFF53, 0xFF90, 0xFF93, 0xFFD9


@dataclasses.dataclass(frozen=True)
class _Stream:
  """The main header of a codestream."""

  width: int
  height: int
  components: int
  bits: int


@dataclasses.dataclass
class _Boxes:
  """What the boxes around it say; None where they don't."""

  stream: memoryview
  space: int | None = None
  profile: bytes | None = None
  palette: np.ndarray | None = None
  mapped: tuple[tuple[int, int, int], ...] = ()
  kinds: dict[int, tuple[int, int]] = dataclasses.field(default_factory=dict)
  dpi: tuple[float, float] | None = None
  exif: bytes | None = None
  xmp: bytes | None = None
  notes: tuple[str, ...] = ()


def look(data: bytes | mmap.mmap, max_pixels: int) -> tuple[_Boxes, _Stream]:
  """Reads boxes and headers; raises if the pixels cannot all be there."""
  found = _unbox(memoryview(data))
  return found, _check(found.stream, max_pixels)


def read_jp2(data: bytes, max_pixels: int) -> Found:
  """Reads a JPEG 2000 file, or a bare codestream."""
  found, head = look(data, max_pixels)
  samples = codec("jpeg2k").decode(bytes(found.stream), numthreads=1)
  samples = samples if samples.ndim == 3 else samples[..., None]
  if samples.shape != (head.height, head.width, head.components):
    raise ValueError(f"a picture of {list(samples.shape)}")
  bits = head.bits
  if found.palette is not None:
    samples = _looked_up(found, samples)
    bits = 8
  samples = widened(samples, bits)
  pixels, alpha, extra, profile = _parted(found, samples)
  return Found(
    format="JP2",
    pixels=pixels,
    alpha=alpha,
    extra=extra,
    icc_profile=profile,
    exif=load_exif(found.exif),
    orientation=1,  # No program turns it by EXIF.
    xmp=found.xmp,
    dpi=found.dpi,
    bits=bits if 8 < bits < 16 else None,
    notes=found.notes,
  )


def size_of(data: bytes) -> tuple[int, int]:
  """Returns width and height by a file's first bytes."""
  at = data.find(STREAM)
  ihdr = data.find(b"\0\0\0\x16ihdr")
  if data.startswith(BOXES) and ihdr > 0:
    height, width = struct.unpack_from(">II", data, ihdr + 8)
    return width, height
  if at < 0:
    raise ValueError("no header")
  x1, y1, x0, y0 = struct.unpack_from(">4I", data, at + 8)
  return x1 - x0, y1 - y0


def _unbox(view: memoryview) -> _Boxes:
  """Reads the boxes."""
  if bytes(view[:4]) == STREAM:
    return _Boxes(view)
  stream, header = None, None
  exif = xmp = None
  notes = []
  for kind, body in boxes.walk(view):
    if kind == b"jp2c":
      stream = body if stream is None else stream
    elif kind == b"jp2h" and header is None:
      header = body
    elif kind == b"uuid" and 16 < len(body) <= MAX_METADATA:
      name, rest = bytes(body[:16]), bytes(body[16:])
      if name == EXIF and exif is None:
        exif = rest
      elif name == XMP and xmp is None:
        xmp = rest
      elif name == _GEOTIFF and not notes:
        notes.append("its place on the map is left out, as JPEG 2000's")
  if stream is None or header is None:
    raise ValueError("no picture in it")
  found = _Boxes(stream, exif=exif, xmp=xmp, notes=tuple(notes))
  for kind, body in boxes.walk(header):
    _take(found, kind, body)
  return found


def _take(found: _Boxes, kind: bytes, body: memoryview) -> None:
  """Notes a box of the header."""
  if kind == b"colr" and found.space is None and found.profile is None:
    if body[0] == 1:
      (found.space,) = struct.unpack_from(">I", body, 3)
    elif body[0] in (2, 3) and len(body) <= MAX_METADATA:
      found.profile = bytes(body[3:])
  elif kind == b"pclr":
    count, columns = struct.unpack_from(">HB", body)
    if not 0 < count <= 1024 or set(body[3 : 3 + columns]) != {7}:
      raise ImageError("a palette not of 8 bits is not read; save it as RGB")
    table = np.frombuffer(body, np.uint8, count * columns, 3 + columns)
    found.palette = table.reshape(count, columns)
  elif kind == b"cmap":
    found.mapped = tuple(struct.iter_unpack(">HBB", body[: len(body) // 4 * 4]))
  elif kind == b"cdef":
    (count,) = struct.unpack_from(">H", body)
    if count > _MOST_COMPONENTS:
      raise ValueError(f"{count} channels")
    for index in range(count):
      channel, type_, of = struct.unpack_from(">HHH", body, 2 + 6 * index)
      found.kinds[channel] = (type_, of)
  elif kind == b"res ":
    for name, part in boxes.walk(body):
      if name in (b"resc", b"resd"):
        found.dpi = _dpi(part)


def _dpi(body: memoryview) -> tuple[float, float]:
  """Reads points a metre: height first."""
  a, b, c, d, down, across = struct.unpack_from(">HHHHbb", body)
  if not b or not d:
    return 0.0, 0.0
  return c / d * 10.0**across * 0.0254, a / b * 10.0**down * 0.0254


def _check(stream: memoryview, max_pixels: int) -> _Stream:
  """Reads the main header, and holds it against what is there."""
  length, _, *sides, count = struct.unpack_from(">HH8IH", stream, 4)
  x1, y1, x0, y0, tile_w, tile_h, tile_x, tile_y = sides
  width, height = x1 - x0, y1 - y0
  limits.check_size(width, height, max_pixels)
  if not 0 < count <= _MOST_COMPONENTS or length != 38 + 3 * count:
    raise ValueError(f"{count} components")
  parts = [struct.unpack_from("BBB", stream, 42 + 3 * i) for i in range(count)]
  if len(set(parts)) > 1 or parts[0][1:] != (1, 1) or parts[0][0] > 15:
    raise ImageError(
      "has subsampled, signed or unequal components, or more than 16 bits,"
      " which are not read; save it as PNG"
    )
  limits.check_size(width, height * max(1, count // 2), max_pixels)
  if 0 in (tile_w, tile_h) or tile_x > x0 or tile_y > y0:
    raise ValueError("tiles of no size")
  across = -(-(x1 - tile_x) // tile_w)
  down = -(-(y1 - tile_y) // tile_h)
  if not (tile_x + tile_w > x0 and tile_y + tile_h > y0):
    raise ValueError("tiles beyond the picture")
  limits.check_pieces(across * down, "tiles")
  size = min(tile_w, width), min(tile_h, height)
  found = _walk(stream, 4 + length, across * down, size, count)
  limits.check_claim(width, height, found, max_pixels, ratio=limits.DENSE_RATIO)
  return _Stream(width, height, count, parts[0][0] + 1)


def _walk(
  stream: memoryview, at: int, tiles: int, size: tuple[int, int], count: int
) -> int:
  """Walks from mark to mark; returns the bytes of tiles, all being there."""
  seen, total, pieces, layers = set(), 0, 0, 0

  def take(at: int, end: int) -> tuple[int, memoryview, int]:
    """Returns a segment's mark, its body, and where the next begins."""
    nonlocal pieces, layers
    limits.check_pieces(pieces := pieces + 1, "segments")
    mark, length = struct.unpack_from(">HH", stream, at)
    after = at + 2 + length
    if length < 2 or after > end:
      raise ValueError("a segment beyond the end")
    body = stream[at + 4 : after]
    own, style = 0, None
    if mark == _COD:
      layers = max(layers, struct.unpack_from(">H", body, 2)[0])
      own, style = body[0], body[5:]
    elif mark == _COC:
      wide = 1 if count < 257 else 2
      own, style = body[wide], body[wide + 1 :]
    if style is not None:
      _check_style(style, bool(own & 1), layers, tiles, size, count)
    return mark, body, after

  def mark_at(at: int) -> int:
    return struct.unpack_from(">H", stream, at)[0]

  while mark_at(at) != _EOC:
    begin = at
    mark, body, at = take(at, len(stream))
    if mark != _SOT:
      continue
    tile, length = struct.unpack_from(">HI", body)
    end = begin + length if length else len(stream) - 2
    if tile >= tiles or not at + 2 <= end <= len(stream) - 2 or not layers:
      raise ValueError("a part of a tile beyond the end")
    # Of a tile's own header, styles count as well.
    while mark_at(at) != _SOD:
      _, _, at = take(at, end)
    seen.add(tile)
    total += end - at
    at = end
  if len(seen) != tiles:
    raise ValueError(f"{len(seen)} of {tiles} tiles")
  return total


def _check_style(
  style: memoryview,
  own_precincts: bool,
  layers: int,
  tiles: int,
  size: tuple[int, int],
  count: int,
) -> None:
  """Refuses a picture cut into more pieces than any program does."""
  levels, block_w, block_h = style[0], style[1] + 2, style[2] + 2
  if levels > 32 or block_w > 10 or block_h > 10 or block_w + block_h > 12:
    raise ValueError("a style that cannot be")
  packets = blocks = 0
  for level in range(levels + 1):
    precinct = style[5 + level] if own_precincts else 0xFF
    wide, high = precinct & 15, precinct >> 4
    sides = [-(-side // 2 ** (levels - level)) for side in size]
    packets += (sides[0] // 2**wide + 2) * (sides[1] // 2**high + 2)
    # A block is no larger than its precinct, and half of that in a band.
    less = int(level > 0)
    block = (
      min(block_w, max(wide - less, 0)),
      min(block_h, max(high - less, 0)),
    )
    blocks += (sides[0] // 2 ** block[0] + 2) * (sides[1] // 2 ** block[1] + 2)
  packets *= tiles * count * max(layers, 1)
  if packets > _MOST_PACKETS or blocks * tiles * count > _MOST_BLOCKS:
    raise ImageError(
      f"is cut into {packets} packets and {blocks * tiles * count} blocks, more"
      " than any program makes; save it as PNG"
    )


def _looked_up(found: _Boxes, samples: np.ndarray) -> np.ndarray:
  """Returns the palette's colours."""
  if samples.shape[2] != 1:
    raise ImageError("a palette of several indices is not read; save it as RGB")
  columns = [column for _, type_, column in found.mapped if type_ == 1]
  columns = columns or list(range(found.palette.shape[1]))
  indices = samples[..., 0]
  if int(indices.max()) >= len(found.palette):
    raise ValueError("a colour that is not in the palette")
  return from_palette(np.ascontiguousarray(found.palette[:, columns]), indices)


def _parted(
  found: _Boxes, samples: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, bytes | None]:
  """Returns colour, alpha, further samples, and the profile of the colour."""
  count = samples.shape[2]
  kinds = {i: k for i, k in found.kinds.items() if i < count}
  opacity = [i for i, (type_, _) in kinds.items() if type_ in (1, 2)]
  # Of those without a word, the second or fourth is opacity.
  if not kinds and count in (2, 4) and found.space not in (12,):
    opacity = [count - 1]
  rest = [i for i in range(count) if i not in opacity and _is_colour(kinds, i)]
  # In the order of what they are, red first.
  rest.sort(key=lambda i: kinds.get(i, (0, i + 1))[1])
  colours = rest[:1] if found.space == GREY or len(rest) < 3 else rest[:3]
  if not colours:
    raise ValueError("no colours")
  pixels = np.ascontiguousarray(samples[..., colours])
  profile = found.profile
  if found.space == _SYCC and len(colours) == 3:
    if pixels.dtype != np.uint8:
      raise ImageError("YCbCr of more than 8 bits is not read; save it as RGB")
    pixels = to_rgb("YCbCr", pixels, None)
  elif found.space not in (None, SRGB, GREY, _SYCC):
    raise ImageError(
      f"its colour space, number {found.space}, is not read; save it as RGB"
    )
  alpha = None
  if opacity:
    alpha = np.ascontiguousarray(samples[..., opacity[0]])
    if kinds.get(opacity[0], (1, 0))[0] == 2:
      top = np.iinfo(samples.dtype).max
      ratio = pixels / np.maximum(alpha, 1)[..., None]
      pixels = np.rint(np.minimum(ratio, 1) * top).astype(samples.dtype)
  others = [
    i for i in range(count) if i not in colours and i not in opacity[:1]
  ]
  extra = np.ascontiguousarray(samples[..., others]) if others else None
  return pixels, alpha, extra, profile


def _is_colour(kinds: dict[int, tuple[int, int]], index: int) -> bool:
  type_, of = kinds.get(index, (0, index + 1))
  return type_ == 0 and 0 < of < 0xFFFF
