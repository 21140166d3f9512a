"""OpenEXR: headers, chunks and most compressions, all by NumPy and zlib."""

from __future__ import annotations

import dataclasses
import math
import mmap
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from esrgan_jax.images import limits, profiles
from esrgan_jax.images.assembly import Found, split_alpha
from esrgan_jax.images.decoders import b44, piz
from esrgan_jax.images.pixels import ImageError
from esrgan_jax.text import printable

SIGNATURE = b"v/1\x01"
_TILED, _DEEP, _PARTS = 0x200, 0x800, 0x1000
_MOST_HEADER = 2**24
_MOST_CHANNELS = 1024
_MOST_CHUNK = 2**26  # Bytes of one, unpacked.
_UINT, _HALF, _FLOAT = 0, 1, 2
_KINDS = {_UINT: "<u4", _HALF: "<f2", _FLOAT: "<f4"}
# Number -> name, rows of a chunk, and most bytes out of one.
_ZIP_RATIO = limits.DEFLATE_RATIO
_COMPRESSIONS = {
  0: ("none", 1, 1),
  1: ("RLE", 1, 64),
  2: ("ZIPS", 1, _ZIP_RATIO),
  3: ("ZIP", 16, _ZIP_RATIO),
  4: ("PIZ", 32, None),
  5: ("PXR24", 16, 2 * _ZIP_RATIO),  # A quarter of a float is left out.
  6: ("B44", 32, 11),
  7: ("B44A", 32, 11),
}
_B44 = (6, 7)
_OTHERS = {8: "DWAA", 9: "DWAB", 10: "HTJ2K", 11: "HTJ2K", 12: "LJ2K"}
_OTHERS |= {13: "zstd"}
# Red, green, blue and white, as files without a word on them have them.
REC709 = (0.64, 0.33, 0.3, 0.6, 0.15, 0.06, 0.3127, 0.329)


class _Channel(NamedTuple):
  """A channel, in the file's order."""

  name: str
  kind: np.dtype
  across: int
  down: int
  curved: bool  # Whether B44 took a logarithm of it.


@dataclasses.dataclass(frozen=True)
class _Header:
  """A part's header; `at` is where the offsets of its chunks begin."""

  width: int
  height: int
  left: int
  top: int
  channels: tuple[_Channel, ...]
  compression: int
  tile: tuple[int, int] | None
  levels: int
  numbered: bool  # Chunks begin with their part's number.
  at: int
  dpi: tuple[float, float] | None
  places: tuple[float, ...]
  notes: tuple[str, ...]

  @property
  def pixel_bytes(self) -> int:
    return sum(channel.kind.itemsize for channel in self.channels)

  @property
  def count(self) -> int:
    """Chunks of the picture."""
    across, down = self.tile or (
      self.width,
      _COMPRESSIONS[self.compression][1],
    )
    return -(-self.width // across) * -(-self.height // down)

  def chunks(self) -> Iterator[tuple[int, int, int, int]]:
    """Yields top, left, rows and columns of each chunk, by the file's order."""
    if self.tile is not None:
      across, down = self.tile
      for top in range(0, self.height, down):
        for left in range(0, self.width, across):
          yield (
            top,
            left,
            min(down, self.height - top),
            min(across, self.width - left),
          )
      return
    _, rows, _ = _COMPRESSIONS[self.compression]
    for top in range(0, self.height, rows):
      yield top, 0, min(rows, self.height - top), self.width


def look(data: bytes | mmap.mmap, max_pixels: int) -> None:
  """Raises what `read_exr` does before it decodes anything."""
  # No more of it: a file that is mapped cannot be searched as bytes can.
  head, names, _ = _read_header(bytes(data[:_MOST_HEADER]), max_pixels)
  _check_channels(head, names)
  _checked(head, memoryview(data), max_pixels)


def read_exr(data: bytes, max_pixels: int) -> Found:
  """Reads the picture of an OpenEXR file: scene-linear, alpha multiplied."""
  head, names, left_out = _read_header(data, max_pixels)
  samples = _decode(head, data, names, max_pixels)
  pixels, alpha = split_alpha(samples)
  kinds = {c.name: c.kind for c in head.channels}
  half = all(kinds[name].itemsize == 2 for name in names)
  profile, notes = _profile(head, pixels.shape[2])
  return Found(
    format="EXR",
    pixels=pixels,
    alpha=alpha,
    icc_profile=profile,
    dpi=head.dpi,
    bits=16 if half else None,
    linear=True,
    premultiplied=True,
    notes=head.notes + left_out + notes,
  )


def _read_header(
  data: bytes, max_pixels: int
) -> tuple[_Header, list[str], tuple[str, ...]]:
  """Reads the header; returns the channels to read, and what is told."""
  head = _parse(data, max_pixels)
  names, left_out = _choose(head.channels)
  room = max(1, len(names) * 4 // 8)
  limits.check_size(head.width, head.height * room, max_pixels)
  return head, names, left_out


def _profile(
  head: _Header, channels: int
) -> tuple[bytes | None, tuple[str, ...]]:
  """Returns a profile of linear light, if the primaries aren't sRGB's."""
  # Red, green, blue, white.
  if channels == 1 or np.allclose(head.places, REC709, atol=0.002):
    return None, ()
  profile = profiles.of_primaries(
    head.places[6:] + head.places[:6], 1.0, channels=3
  )
  if profile is None:
    return None, ("its primaries are no colours, and left out",)
  return profile, ()


def size_of(data: bytes) -> tuple[int, int]:
  """Returns width and height by a file's first bytes."""
  # Other attributes, a preview for one, may be longer than what is here.
  name = b"dataWindow\0box2i\0" + struct.pack("<i", 16)
  at = data.index(name) + len(name)
  x0, y0, x1, y1 = struct.unpack_from("<4i", data, at)
  return x1 - x0 + 1, y1 - y0 + 1


def _attributes(
  data: bytes, at: int, flags: int
) -> tuple[dict[str, bytes], int]:
  """Reads a header's attributes; returns where it ends, too."""
  found: dict[str, bytes] = {}
  count, begin = 0, at
  while data[at] != 0:
    limits.check_pieces(count := count + 1, "attributes")
    words = []
    for _ in range(2):
      end = data.index(b"\0", at, at + 256)
      words.append(data[at:end].decode("latin-1"))
      at = end + 1
    (size,) = struct.unpack_from("<i", data, at)
    at += 4
    if not 0 <= size <= len(data) - at or at - begin > _MOST_HEADER:
      raise ValueError("an attribute beyond the end")
    found.setdefault(words[0], data[at : at + size])
    at += size
  return found, at + 1


def _parse(data: bytes, max_pixels: int) -> _Header:
  """Reads the first part's header."""
  (flags,) = struct.unpack_from("<I", data, 4)
  if flags & 255 != 2:
    raise ValueError(f"version {flags & 255}")
  if flags & _DEEP:
    raise ImageError("deep data are not read; flatten it first")
  notes = []
  attributes, at = _attributes(data, 8, flags)
  if flags & _PARTS:
    parts = 1
    while data[at] != 0:
      _, at = _attributes(data, at, flags)
      limits.check_pieces(parts := parts + 1, "parts")
    at += 1
    if parts > 1:
      notes.append(f"the first of its {parts} parts was read")
    kind = attributes.get("type", b"scanlineimage")
    if not kind.startswith((b"scanlineimage", b"tiledimage")):
      raise ImageError("deep data are not read; flatten it first")
    flags = flags & ~_TILED | _TILED * kind.startswith(b"tiledimage")
  x0, y0, x1, y1 = struct.unpack("<4i", attributes["dataWindow"])
  width, height = x1 - x0 + 1, y1 - y0 + 1
  limits.check_size(width, height, max_pixels)
  if attributes.get("displayWindow") != attributes["dataWindow"]:
    notes.append(
      "its data window is the picture; that of the display, another one, is"
      " left out"
    )
  (compression,) = struct.unpack("<B", attributes["compression"])
  if compression not in _COMPRESSIONS:
    name = _OTHERS.get(compression, compression)
    raise ImageError(
      f"{name} compression is not read; save it with ZIP, PIZ or none"
    )
  tile, levels = None, 0
  if flags & _TILED:
    across, down, mode = struct.unpack("<IIB", attributes["tiles"])
    tile, levels = (across, down), mode & 15
    if not (0 < across < 2**16 and 0 < down < 2**16):
      raise ValueError(f"tiles of {across} x {down} pixels")
  places = REC709
  if "chromaticities" in attributes:
    places = struct.unpack("<8f", attributes["chromaticities"])
  return _Header(
    width=width,
    height=height,
    left=x0,
    top=y0,
    channels=tuple(_channels(attributes["channels"])),
    compression=compression,
    tile=tile,
    levels=levels,
    numbered=bool(flags & _PARTS),
    at=at,
    dpi=_dpi(attributes),
    places=places,
    notes=tuple(notes),
  )


def _channels(data: bytes) -> Iterator[_Channel]:
  """Yields the channels of the list."""
  at, count = 0, 0
  while data[at] != 0:
    if (count := count + 1) > _MOST_CHANNELS:
      raise ValueError(f"more than {_MOST_CHANNELS} channels")
    end = data.index(b"\0", at)
    kind, curved, across, down = struct.unpack_from("<iB3xii", data, end + 1)
    if kind not in _KINDS or across < 1 or down < 1:
      raise ValueError(f"a channel of kind {kind}")
    name = data[at:end].decode("latin-1")
    yield _Channel(name, np.dtype(_KINDS[kind]), across, down, bool(curved))
    at = end + 17


def _dpi(attributes: dict[str, bytes]) -> tuple[float, float] | None:
  """Returns pixels an inch, if they are there."""
  density = attributes.get("xDensity", b"")
  aspect = attributes.get("pixelAspectRatio", b"")
  if len(density) != 4 or len(aspect) != 4:
    return None
  (x,), (ratio,) = struct.unpack("<f", density), struct.unpack("<f", aspect)
  if not (math.isfinite(x) and math.isfinite(ratio)):
    return None
  return x, x * ratio


def _choose(
  channels: Sequence[_Channel],
) -> tuple[list[str], tuple[str, ...]]:
  """Chooses colours, and alpha behind them; tells what is left out."""
  if any((c.across, c.down) != (1, 1) for c in channels):
    raise ImageError("subsampled channels are not read; save it as RGB")
  layers: dict[str, dict[str, str]] = {}
  for channel in channels:
    layer, _, name = channel.name.rpartition(".")
    layers.setdefault(layer, {})[name.upper()] = channel.name

  def rank(layer: str) -> tuple[bool, bool]:
    # The layer without a name, then Blender's of the picture.
    return layer != "", not layer.endswith("Combined")

  for wanted in (("R", "G", "B"), ("Y",)):
    for layer in sorted(layers, key=rank):
      found = layers[layer]
      if all(name in found for name in wanted) and "RY" not in found:
        names = [found[n] for n in (*wanted, "A") if n in found]
        return names, _left_out(channels, names)
  if len(channels) == 1:
    return [channels[0].name], ()
  seen = " ".join(printable(c.name) for c in channels[:8])
  raise ImageError(
    f"its channels are {seen or 'none'}, and R, G and B or Y are read; save it"
    " as RGB"
  )


def _left_out(
  channels: Sequence[_Channel], names: Sequence[str]
) -> tuple[str, ...]:
  others = [printable(c.name) for c in channels if c.name not in names]
  if not others:
    return ()
  words = " ".join(others[:6]) + (" ..." if len(others) > 6 else "")
  return (f"its further channels are left out: {words}",)


def _check_channels(head: _Header, names: Sequence[str]) -> None:
  """Refuses samples of kinds that are not read."""
  for channel in head.channels:
    if channel.name in names and channel.kind.kind != "f":
      raise ImageError("whole numbers are not read; save it as half or float")
    if head.compression in _B44 and channel.curved:
      raise ImageError("B44 of logarithms is not read; save it with ZIP")


def _decode(
  head: _Header, data: bytes, names: Sequence[str], max_pixels: int
) -> np.ndarray:
  """Decodes all chunks; returns float32 `[H, W, names]`."""
  _check_channels(head, names)
  chosen = {name: i for i, name in enumerate(names)}
  view = memoryview(data)
  chunks = list(_checked(head, view, max_pixels))
  samples = np.empty((head.height, head.width, len(names)), np.float32)
  unpack = _unpacker(head)
  for top, left, rows, columns, part in chunks:
    size = rows * columns * head.pixel_bytes
    if len(part) < size:
      raw = unpack(part, rows, columns, size)
    elif len(part) == size:
      raw = bytes(part)
    else:
      raise ValueError(f"a chunk of {len(part)} bytes")
    lines = np.frombuffer(raw, np.uint8, size).reshape(rows, -1)
    at = 0
    for channel in head.channels:
      end = at + columns * channel.kind.itemsize
      if channel.name in chosen:
        values = np.ascontiguousarray(lines[:, at:end]).view(channel.kind)
        place = np.s_[top : top + rows, left : left + columns]
        samples[*place, chosen[channel.name]] = values
      at = end
  return samples


def _checked(
  head: _Header, view: memoryview, max_pixels: int
) -> Iterator[tuple[int, int, int, int, memoryview]]:
  """Yields place and bytes of each chunk, once all have been found sound."""
  _, _, ratio = _COMPRESSIONS[head.compression]
  limits.check_pieces(head.count, "chunks")
  offsets = struct.unpack_from(f"<{head.count}Q", view, head.at)
  places = list(head.chunks())
  found, total, parts = set(), 0, []
  for offset, (top, left, rows, columns) in zip(offsets, places, strict=True):
    at = offset + 4 * head.numbered
    if head.tile is None:
      y, size = struct.unpack_from("<ii", view, at)
      at += 8
      top = y - head.top
    else:
      x, y, *level, size = struct.unpack_from("<iiiii", view, at)
      at += 20
      across, down = head.tile
      top, left = y * down, x * across
      if any(level):
        raise ValueError("tiles of another level")
    if size <= 0 or offset < head.at or at + size > len(view):
      raise ValueError("a chunk beyond the end")
    found.add((top, left))
    # Where it lies decides its size, whatever its place in the table.
    if head.tile is None:
      rows = min(_COMPRESSIONS[head.compression][1], head.height - top)
    else:
      rows = min(head.tile[1], head.height - top)
      columns = min(head.tile[0], head.width - left)
    unpacked = rows * columns * head.pixel_bytes
    if ratio is not None:
      limits.check_bits(columns, rows, 8 * -(-unpacked // ratio), size)
    if unpacked > _MOST_CHUNK:
      raise ImageError(
        f"chunks of {unpacked} bytes are more than {_MOST_CHUNK}; save it with"
        " fewer channels"
      )
    total += size
    parts.append((top, left, rows, columns, view[at : at + size]))
  if found != {(top, left) for top, left, _, _ in places}:
    raise ValueError(f"{len(found)} of {len(places)} chunks")
  if total > len(view):
    raise ValueError("chunks that overlap")
  limits.check_claim(
    head.width, head.height, total, max_pixels, ratio=limits.DENSE_RATIO
  )
  return iter(parts)


def _unpacker(
  head: _Header,
) -> Callable[[memoryview, int, int, int], bytes | np.ndarray]:
  """Returns a function of a part, its rows and columns, and its size."""

  def inflate(part: memoryview, size: int) -> bytes:
    raw = zlib.decompressobj().decompress(part, size)
    if len(raw) < size:
      raise ValueError(f"a chunk of {len(raw)} bytes, not {size}")
    return raw

  def from_zip(part, rows, columns, size):
    return _restored(np.frombuffer(inflate(part, size), np.uint8))

  def from_runs(part, rows, columns, size):
    return _restored(np.frombuffer(_runs(part, size), np.uint8))

  def from_pxr24(part, rows, columns, size):
    stored = {1: 2, 2: 3, 0: 4}
    kinds = [(c.kind, stored[_number(c.kind)]) for c in head.channels]
    packed = inflate(part, rows * columns * sum(s for _, s in kinds))
    return _from_pxr24(packed, rows, columns, kinds)

  def from_piz(part, rows, columns, size):
    words = [c.kind.itemsize // 2 for c in head.channels]
    return piz.decode(bytes(part), rows, columns, words)

  def from_b44(part, rows, columns, size):
    kinds = [c.kind for c in head.channels]
    return b44.decode(bytes(part), rows, columns, kinds)

  def as_it_is(part, rows, columns, size):
    raise ValueError(f"a chunk of {len(part)} bytes, not {size}")

  unpackers = (as_it_is, from_runs, from_zip, from_zip, from_piz, from_pxr24)
  return (*unpackers, from_b44, from_b44)[head.compression]


def _number(kind: np.dtype) -> int:
  return next(n for n, k in _KINDS.items() if kind == k)


def _restored(errors: np.ndarray) -> np.ndarray:
  """Undoes the prediction and the parting of even and odd bytes."""
  shifted = errors - np.uint8(128)
  shifted[0] = errors[0]
  values = np.cumsum(shifted, dtype=np.uint8)
  out = np.empty_like(values)
  half = (len(values) + 1) // 2
  out[0::2], out[1::2] = values[:half], values[half:]
  return out


def _runs(part: memoryview, size: int) -> bytes:
  """Unpacks run lengths."""
  data, at, out = bytes(part), 0, bytearray()
  while at + 1 < len(data) and len(out) < size:
    count = data[at]
    if count > 127:
      out += data[at + 1 : at + 1 + 256 - count]
      at += 257 - count
    else:
      out += data[at + 1 : at + 2] * (count + 1)
      at += 2
  if len(out) != size:
    raise ValueError(f"a chunk of {len(out)} bytes, not {size}")
  return bytes(out)


def _from_pxr24(
  packed: bytes, rows: int, columns: int, kinds: list[tuple[np.dtype, int]]
) -> np.ndarray:
  """Undoes differences of planes of bytes, of each row and channel."""
  lines = np.frombuffer(packed, np.uint8).reshape(rows, -1)
  parts, at = [], 0
  for kind, stored in kinds:
    end = at + columns * stored
    planes = lines[:, at:end].reshape(rows, stored, columns).astype(np.uint32)
    wide = 8 * kind.itemsize
    values = np.zeros((rows, columns), np.uint32)
    for i in range(stored):
      values |= planes[:, i] << np.uint32(wide - 8 * (i + 1))
    values = np.cumsum(values, axis=1, dtype=np.uint32)
    values = values.astype(f"<u{kind.itemsize}")
    parts.append(values.view(np.uint8).reshape(rows, -1))
    at = end
  return np.concatenate(parts, axis=1).reshape(-1)
