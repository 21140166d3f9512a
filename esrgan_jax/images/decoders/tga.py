"""TGA, Targa, which has no mark at its beginning: all by NumPy."""

from __future__ import annotations

import dataclasses
import mmap
import struct

import numpy as np

from esrgan_jax.images import limits
from esrgan_jax.images.assembly import Found, from_palette, split_alpha

_HEAD = 18
FOOTER_BYTES = 26
_FOOTER = b"TRUEVISION-XFILE.\0"
_MAPPED, _COLOUR, _GREY, _RUNS = 1, 2, 3, 8
# Kind -> bits of a pixel.
_BITS = {_MAPPED: {8, 16}, _COLOUR: {15, 16, 24, 32}, _GREY: {8, 16}}
_LONGEST_RUN = 128
# The extension's word on alpha: nothing, or of no use; premultiplied.
_NO_ALPHA, _PREMULTIPLIED = (0, 1, 2), 4


@dataclasses.dataclass(frozen=True)
class _Header:
  """The eighteen bytes in the beginning."""

  name: int  # Bytes of it.
  mapped: int
  kind: int
  first: int
  colours: int
  colour_bits: int
  width: int
  height: int
  bits: int
  flags: int

  @property
  def alpha_bits(self) -> int:
    """Bits of alpha of a pixel, as it is stated."""
    return self.flags & 15

  @property
  def size(self) -> int:
    """Bytes of a pixel."""
    return (self.bits + 7) // 8


def parse_header(data: bytes | memoryview) -> _Header | None:
  """Returns the header, or None if no TGA begins so."""
  if len(data) < _HEAD:
    return None
  head = _Header(*struct.unpack_from("<BBBHHB4xHHBB", data))
  plain = head.kind & ~_RUNS
  if (
    head.bits not in _BITS.get(plain, ())
    or head.mapped > 1
    or 0 in (head.width, head.height)
    or head.flags & 0xC0
    or head.alpha_bits not in (0, 1, 8)
    or (plain == _MAPPED and (not head.mapped or head.colours == 0))
    or (head.mapped and head.colour_bits not in (15, 16, 24, 32))
  ):
    return None
  return head


def is_tga(head: bytes, tail: bytes, suffix: str) -> bool:
  """Tells whether a file is one, by its ends and its name.

  Args:
    head: Its first 18 bytes.
    tail: Its last `FOOTER_BYTES`.
    suffix: Of its name.
  """
  if parse_header(head) is None:
    return False
  return tail.endswith(_FOOTER) or suffix.lower() == ".tga"


def look(
  data: bytes | mmap.mmap, max_pixels: int
) -> tuple[_Header, np.ndarray | None, int]:
  """Reads what comes before the pixels; raises if not all can be there.

  Returns:
    The header, the palette, and where the pixels begin.
  """
  head = parse_header(data)
  if head is None:
    raise ValueError("no header")
  width, height = head.width, head.height
  limits.check_size(width, height, max_pixels)
  palette, at = _palette(head, data, _HEAD + head.name)
  found = max(len(data) - at, 0)
  ratio = head.size
  if head.kind & _RUNS:
    ratio = (1 + head.size) / _LONGEST_RUN
  needed = int(-(-width * height * ratio // 1))
  limits.check_bits(width, height, 8 * needed, found)
  return head, palette, at


def read_tga(data: bytes, max_pixels: int) -> Found:
  """Reads a TGA."""
  head, palette, at = look(data, max_pixels)
  width, height = head.width, head.height
  unpack = _unpack_runs if head.kind & _RUNS else _unpack
  words = unpack(head, memoryview(data)[at:]).reshape(height, width, head.size)
  if not head.flags & 0x20:
    words = words[::-1]
  if head.flags & 0x10:
    words = words[:, ::-1]
  kind = head.kind & ~_RUNS
  if kind == _MAPPED:
    indices = words[..., 0].astype(np.uint16)
    if head.size == 2:
      indices |= words[..., 1].astype(np.uint16) << 8
    indices -= np.uint16(head.first)  # Below the first, it wraps.
    if int(indices.max()) >= len(palette):
      raise ValueError("a colour that is not in the palette")
    samples = from_palette(palette, indices)
  elif kind == _GREY:
    samples = words
  else:
    samples = _colours(words, head.bits, head.alpha_bits)
  pixels, alpha = split_alpha(samples)
  if alpha is not None:
    pixels, alpha = _see_to_alpha(pixels, alpha, _word_on_alpha(data))
  return Found(format="TGA", pixels=pixels, alpha=alpha)


def _palette(
  head: _Header, data: bytes, at: int
) -> tuple[np.ndarray | None, int]:
  """Returns the palette `[N, 3 or 4]`, and where it ends."""
  if not head.mapped:
    return None, at
  size = (head.colour_bits + 7) // 8
  end = at + size * head.colours
  table = np.frombuffer(data, np.uint8, size * head.colours, at)
  colours = table.reshape(1, -1, size)
  alpha = 8 if head.colour_bits == 32 else 0
  return _colours(colours, head.colour_bits, alpha)[0], end


def _colours(words: np.ndarray, bits: int, alpha_bits: int) -> np.ndarray:
  """Returns RGB or RGBA of words `[..., bytes]`, the lowest byte first."""
  if bits in (24, 32):
    if bits == 32 and alpha_bits == 8:
      return words[..., [2, 1, 0, 3]]
    return words[..., 2::-1]
  low, high = (words[..., i].astype(np.uint16) for i in (0, 1))
  both = low | high << 8
  fives = np.stack([both >> 10 & 31, both >> 5 & 31, both & 31], axis=-1)
  samples = (fives * 255 + 15) // 31
  if bits == 16 and alpha_bits == 1:
    samples = np.concatenate([samples, (both >> 15)[..., None] * 255], axis=-1)
  return samples.astype(np.uint8)


def _unpack(head: _Header, data: memoryview) -> np.ndarray:
  """Returns the bytes of pixels as they are."""
  return np.frombuffer(data, np.uint8, head.width * head.height * head.size)


def _unpack_runs(head: _Header, data: memoryview) -> np.ndarray:
  """Returns the bytes of pixels out of run lengths.

  Only where the packets lie is found one by one, in less than a microsecond.
  """
  total, size, end = head.width * head.height, head.size, len(data)
  ats, counts, at, done = [], [], 0, 0
  while done < total:
    if at >= end:
      raise ValueError(f"{done} of {total} pixels")
    mark = data[at]
    ats.append(at)
    if mark & 128:
      count = mark - 127
      at += 1 + size
    else:
      count = mark + 1
      at += 1 + size * count
    counts.append(count)
    done += count
  if at > end:
    raise ValueError("the last pixels are missing")
  starts, lengths = np.array(ats, np.int64), np.array(counts, np.int64)
  source = np.frombuffer(data, np.uint8)
  moves = source[starts] < 128  # From pixel to pixel; a run stays at one.
  within = np.arange(done) - np.repeat(np.cumsum(lengths) - lengths, lengths)
  places = np.repeat(starts + 1, lengths)
  places += size * within * np.repeat(moves, lengths)
  places = places[:total]
  return source[places[:, None] + np.arange(size)]


def _word_on_alpha(data: bytes) -> int | None:
  """Returns what the extension, if there is one, says of alpha."""
  if not data.endswith(_FOOTER):
    return None
  (at,) = struct.unpack_from("<I", data, len(data) - 26)
  if not _HEAD <= at <= len(data) - 495 or data[at : at + 2] != b"\xef\1":
    return None
  return data[at + 494]


def _see_to_alpha(
  pixels: np.ndarray, alpha: np.ndarray, word: int | None
) -> tuple[np.ndarray, np.ndarray | None]:
  """Leaves out an alpha that is none, and undoes a multiplication by it."""
  # Programs that know no alpha leave it 0 everywhere.
  if not alpha.any() or word in _NO_ALPHA:
    return pixels, None
  if word == _PREMULTIPLIED:
    ratio = pixels / np.maximum(alpha, 1)[..., None]
    pixels = np.rint(np.minimum(ratio, 1) * 255).astype(np.uint8)
  return pixels, alpha
