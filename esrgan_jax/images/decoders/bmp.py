"""BMP of Windows and OS/2, all by NumPy but run lengths."""

from __future__ import annotations

import dataclasses
import mmap
import struct

import numpy as np

from esrgan_jax.images import limits
from esrgan_jax.images.assembly import Found, from_palette, split_alpha
from esrgan_jax.images.limits import MAX_METADATA
from esrgan_jax.images.pixels import ImageError, bands

_CORE = 12  # OS/2 1: sides of 16 bits, palettes without padding.
_LONGEST = 124
_HEADERS = {40, 52, 56, 64, 108, _LONGEST}
_NONE, _RLE8, _RLE4, _MASKS = 0, 1, 2, 3
# Compression -> bits of a pixel.
_BITS = {_NONE: {1, 4, 8, 16, 24, 32}, _RLE8: {8}, _RLE4: {4}}
_BITS |= {_MASKS: {16, 24, 32}}
# Bits -> masks of red, green, blue and alpha, where the file has none.
_BYTES = (0xFF0000, 0xFF00, 0xFF, 0)
_USUAL = {16: (0x7C00, 0x3E0, 0x1F, 0), 24: _BYTES, 32: _BYTES}
# What four masks of 0 are taken for.
_WITH_ALPHA = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
# Most pixels that run lengths make of a byte: 255 of two.
_RATIO = 128
# They are unpacked one by one, some in a microsecond.
_MOST_RUNS = 2**20


@dataclasses.dataclass(frozen=True)
class _Header:
  """What the header says; `at` is where the pixels lie."""

  width: int
  height: int
  downwards: bool
  bits: int
  compression: int
  masks: tuple[int, ...]
  palette: np.ndarray | None
  at: int
  dpi: tuple[float, float] | None

  @property
  def row_bytes(self) -> tuple[int, int]:
    """Bytes of a row without run lengths, and those with its padding."""
    bits = self.width * self.bits
    return (bits + 7) // 8, (bits + 31) // 32 * 4


def look(data: bytes | mmap.mmap, max_pixels: int) -> _Header:
  """Reads the header; raises if its pixels cannot all be there."""
  head = _read_header(data, max_pixels)
  found = max(len(data) - head.at, 0)
  if head.compression in (_RLE8, _RLE4):
    limits.check_claim(head.width, head.height, found, max_pixels, ratio=_RATIO)
  else:
    used, stride = head.row_bytes
    needed = stride * (head.height - 1) + used
    limits.check_bits(head.width, head.height, 8 * needed, found)
  return head


def read_bmp(data: bytes, max_pixels: int) -> Found:
  """Reads a BMP."""
  head = look(data, max_pixels)
  if head.compression in (_RLE8, _RLE4):
    samples = _unpack_runs(head, data)
  else:
    samples = _unpack_rows(head, data)
  if not head.downwards:
    samples = samples[::-1]
  if head.bits <= 8:
    samples = from_palette(head.palette, samples)
  pixels, alpha = split_alpha(samples)
  return Found(
    format="BMP",
    pixels=pixels,
    alpha=alpha,
    icc_profile=_profile(data),
    dpi=head.dpi,
  )


def _profile(data: bytes) -> bytes | None:
  """Returns the profile that the longest header may point to."""
  size, kind = struct.unpack_from("<I", data, 14)[0], data[70:74]
  if size != _LONGEST or kind != b"DEBM":
    return None
  at, length = struct.unpack_from("<II", data, 126)
  if length > MAX_METADATA:
    return b""
  return data[14 + at : 14 + at + length]


def _read_header(data: bytes, max_pixels: int) -> _Header:
  """Reads the header, the masks and the palette."""
  at, size = struct.unpack_from("<II", data, 10)
  dpi, compression, colours, padded = None, _NONE, 0, 4
  if size == _CORE:
    width, height, _, bits = struct.unpack_from("<4H", data, 18)
    padded = 3
  elif size in _HEADERS:
    width, height, _, bits, compression, _, *metre, colours, _ = (
      struct.unpack_from("<IiHHIIIIII", data, 18)
    )
    dpi = tuple(v * 0.0254 for v in metre)
  else:
    raise ImageError(
      f"a BMP header of {size} bytes is not read; save it as PNG"
    )
  limits.check_size(width, abs(height), max_pixels)
  if bits not in _BITS.get(compression, ()):
    raise ImageError(
      f"a BMP of {bits} bits and compression {compression} is not read; save it"
      " as PNG"
    )
  end, masks, palette = 14 + size, (), None
  if bits <= 8:
    colours = colours or 1 << bits
    palette = _palette(data[end : end + padded * min(colours, 256)], padded)
    end += padded * colours
    if at == 14 + size:
      at = 0  # So some programs write, and mean the palette's end.
  elif compression == _MASKS:
    count = 4 if size >= 56 else 3
    masks = struct.unpack_from(f"<{count}I", data, 54)
    masks = (*masks, 0)[:4] if any(masks) else _WITH_ALPHA
    end = max(end, 54 + 4 * count)
  return _Header(
    width=width,
    height=abs(height),
    downwards=height < 0,
    bits=bits,
    compression=compression,
    masks=masks or _USUAL.get(bits, ()),
    palette=palette,
    at=at or end,
    dpi=dpi,
  )


def _palette(table: bytes, padded: int) -> np.ndarray:
  """Returns colours, `[256, 3]`, or `[256, 1]` if they are greys in order."""
  count = len(table) // padded
  colours = np.zeros((256, 3), np.uint8)
  entries = np.frombuffer(table, np.uint8, padded * count)
  colours[:count] = entries.reshape(count, padded)[:, 2::-1]
  greys = np.arange(count) if count != 2 else np.array((0, 255))
  if (colours[:count] == greys[:, None]).all():
    return colours[:, :1]
  return colours


def _unpack_rows(head: _Header, data: bytes) -> np.ndarray:
  """Returns indices `[H, W]` or samples `[H, W, 3 or 4]`, as stored."""
  width, height, bits = head.width, head.height, head.bits
  (used, stride), at = head.row_bytes, head.at
  if at + stride * height > len(data):  # The last row has no padding.
    data, at = data[at:].ljust(stride * height, b"\0"), 0
  rows = np.frombuffer(data, np.uint8, stride * height, at)
  rows = rows.reshape(height, stride)
  if bits == 8:
    return rows[:, :width]
  if bits == 4:
    return np.stack([rows >> 4, rows & 15], axis=2).reshape(height, -1)[
      :, :width
    ]
  if bits == 1:
    return np.unpackbits(rows, axis=1, count=width)
  if (bits, head.masks) in ((24, _BYTES), (32, _BYTES)):
    samples = rows[:, :used].reshape(height, width, bits // 8)
    return samples[..., 2::-1]
  if bits == 24:
    raise ImageError("a BMP of 24 bits with masks is not read; save it as PNG")
  return _unmask(rows.view(f"<u{bits // 8}")[:, :width], head.masks)


def _unmask(words: np.ndarray, masks: tuple[int, ...]) -> np.ndarray:
  """Returns the samples of words `[H, W]`, by a mask a sample."""
  if not masks[3]:
    masks = masks[:3]
  samples = np.empty((*words.shape, len(masks)), np.uint8)
  for channel, mask in enumerate(masks):
    shift = (mask & -mask).bit_length() - 1
    top = mask >> max(shift, 0)
    if not 0 < top < 2**16 or top & (top + 1):
      raise ValueError(f"a mask of {mask:#x}")
    for rows in bands(words):
      values = words[rows].astype(np.uint32) >> np.uint32(shift) & np.uint32(
        top
      )
      samples[rows, :, channel] = values * np.uint32(255) // np.uint32(top)
  return samples


def _unpack_runs(head: _Header, data: bytes) -> np.ndarray:
  """Returns indices `[H, W]`, as rows are stored."""
  width, height, at = head.width, head.height, head.at
  nibbles = head.compression == _RLE4
  indices = bytearray(width * height)
  row = column = runs = 0
  while (row, column) < (height - 1, width):
    if (runs := runs + 1) > _MOST_RUNS:
      raise ImageError(f"more than {_MOST_RUNS} runs; save it as PNG")
    if at + 2 > len(data):
      raise ValueError("no end mark")
    count, value = data[at : at + 2]
    at += 2
    if count:
      run = (
        bytes((value >> 4, value & 15)) * 128
        if nibbles
        else (bytes((value,)) * count)
      )
    elif value == 0:
      row, column = row + 1, 0
      continue
    elif value == 1:
      break
    elif value == 2:
      if at + 2 > len(data):
        raise ValueError("no end mark")
      right, up = data[at : at + 2]
      row, column, at = row + up, column + right, at + 2
      continue
    else:
      count, size = value, (value + 1) // 2 if nibbles else value
      run = data[at : at + size]
      if len(run) < size:
        raise ValueError("no end mark")
      if nibbles:
        run = bytes(n for byte in run for n in (byte >> 4, byte & 15))
      at += size + size % 2
    count = max(min(count, width - column), 0)
    start = row * width + column
    indices[start : start + count] = run[:count]
    column += count
  return np.frombuffer(indices, np.uint8).reshape(height, width)
