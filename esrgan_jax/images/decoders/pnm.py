"""PBM, PGM, PPM, PAM and PFM, all by NumPy."""

from __future__ import annotations

import dataclasses
import math
import mmap
import re

import numpy as np

from esrgan_jax.images import limits
from esrgan_jax.images.assembly import Found, split_alpha
from esrgan_jax.images.pixels import ImageError, bands

_TEXT, _BITS, _FLOATS = b"123", b"14", b"Ff"
_NAMES = {b"1": "PBM", b"2": "PGM", b"3": "PPM", b"4": "PBM", b"5": "PGM"}
_NAMES |= {b"6": "PPM", b"7": "PAM", b"F": "PFM", b"f": "PFM"}
# What programs write, with room for comments.
_MOST_HEADER = 2**16
_TUPLES = {b"BLACKANDWHITE": 1, b"GRAYSCALE": 1, b"RGB": 3}
_TUPLES |= {b"BLACKANDWHITE_ALPHA": 2, b"GRAYSCALE_ALPHA": 2, b"RGB_ALPHA": 4}
_PART = 2**22  # Bytes of text read at once.
_SPACE = re.compile(rb"\s")
_SPACES = b" \t\n\v\f\r"


@dataclasses.dataclass(frozen=True)
class Header:
  """A header; `at` is where the pixels begin."""

  kind: bytes
  width: int
  height: int
  samples: int
  top: float  # Of PFM, 1, and -1 if its lowest bytes come first.
  at: int

  @property
  def name(self) -> str:
    """The format, as in `Metadata`."""
    return _NAMES[self.kind]

  @property
  def row_bytes(self) -> int:
    """Bytes of a row of pixels; of text, the fewest that it can have."""
    if self.kind == b"4":
      return -(-self.width // 8)
    size = 1
    if self.kind in _FLOATS:
      size = 4
    elif self.kind not in _TEXT and self.top >= 256:
      size = 2
    return self.width * self.samples * size


def is_pnm(head: bytes) -> bool:
  """Tells whether a file begins like one."""
  return (
    len(head) > 2
    and head[:1] == b"P"
    and head[1:2] in _NAMES
    and (head[2] in _SPACES + b"#")
  )


def look(data: bytes | mmap.mmap, max_pixels: int) -> Header:
  """Reads the header; raises if the pixels cannot all be there."""
  head = parse_header(data)
  limits.check_size(head.width, head.height, max_pixels)
  if head.kind in _FLOATS:
    if not math.isfinite(head.top) or head.top == 0:
      raise ValueError(f"a scale of {head.top}")
  elif not 0 < head.top < 2**16:
    raise ValueError(f"a largest value of {head.top}")
  needed = head.row_bytes * head.height
  limits.check_bits(head.width, head.height, 8 * needed, len(data) - head.at)
  return head


def read_pnm(data: bytes, max_pixels: int) -> Found:
  """Reads the first picture of a file; tells if more of them follow."""
  head = look(data, max_pixels)
  notes: tuple[str, ...] = ()
  if head.kind in _FLOATS:
    return _read_floats(head, data)
  top = int(head.top)
  if head.kind in _TEXT:
    samples = _from_text(head, data)
  elif head.kind == b"4":
    rows = _raw(head, data, np.uint8)
    notes = _follows(data, head.at + rows.nbytes)
    samples = 1 - np.unpackbits(
      rows.reshape(head.height, -1), axis=1, count=head.width
    )
  else:
    samples = _raw(head, data, np.uint8 if top < 256 else ">u2")
    notes = _follows(data, head.at + samples.nbytes)
  samples = samples.reshape(head.height, head.width, head.samples)
  pixels, alpha = split_alpha(_scaled(samples, top))
  return Found(format=head.name, pixels=pixels, alpha=alpha, notes=notes)


def _follows(data: bytes, end: int) -> tuple[str, ...]:
  """Tells of what a file, which may be a row of pictures, has after one."""
  if not is_pnm(data[end : end + 3]):
    return ()
  return ("the pictures after its first are left out",)


def parse_header(data: bytes) -> Header:
  """Reads the header, of the file's first bytes."""
  kind, part = data[1:2], data[:_MOST_HEADER]
  if kind == b"7":
    return _parse_pam(part)
  count = 2 if kind in _BITS else 3
  numbers: list[bytes] = []
  at = 2
  for _ in range(count):
    found = re.compile(rb"(?:[ \t-\r]|#[^\n\r]*)*([-+.0-9eE]{1,40})").match(
      part, at
    )
    if found is None:
      raise ValueError("no header")
    numbers.append(found[1])
    at = found.end()
  # One space more, after a comment at most.
  end = re.compile(rb"(?:#[^\n\r]*)?[ \t-\r]").match(part, at)
  if end is None:
    raise ValueError("no header")
  top = 1.0 if kind in _BITS else float(numbers[2])
  return Header(
    kind,
    int(numbers[0]),
    int(numbers[1]),
    3 if kind in b"36F" else 1,
    top,
    end.end(),
  )


def _parse_pam(part: bytes) -> Header:
  """Reads the header of a PAM."""
  end = re.compile(rb"^ENDHDR[ \t\r]*\n", re.MULTILINE).search(part)
  if end is None:
    raise ValueError("no header")
  words: dict[bytes, bytes] = {}
  for line in part[3 : end.start()].splitlines():
    name, _, value = line.partition(b"#")[0].strip().partition(b" ")
    words.setdefault(name, value.strip())
  depth, kind = int(words[b"DEPTH"]), words.get(b"TUPLTYPE", b"")
  if _TUPLES.get(kind, depth) != depth or depth not in (1, 2, 3, 4):
    raise ImageError(
      f"a PAM of {depth} samples a pixel is not read; save it as grey or RGB,"
      " with or without alpha"
    )
  width, height = int(words[b"WIDTH"]), int(words[b"HEIGHT"])
  return Header(b"7", width, height, depth, int(words[b"MAXVAL"]), end.end())


def _raw(head: Header, data: bytes, kind: type | str) -> np.ndarray:
  """Returns what is stored as it is; `look` has seen that it is there."""
  count = head.row_bytes * head.height // np.dtype(kind).itemsize
  return np.frombuffer(data, kind, count, head.at)


def _from_text(head: Header, data: bytes) -> np.ndarray:
  """Reads samples that are written in decimal."""
  count = head.width * head.height * head.samples
  text = re.sub(rb"#[^\n\r]*", b"", data[head.at :])
  if head.kind == b"1":
    digits = np.frombuffer(text, np.uint8)
    digits = digits[(digits == 48) | (digits == 49)][:count]
    samples = 49 - digits
  else:
    parts, found, at = [np.zeros(0, np.uint16)], 0, 0
    while found < count and at < len(text):
      # Part by part, as Python's words are large.
      end = _SPACE.search(text, at + _PART)
      end = len(text) if end is None else end.start()
      words = text[at:end].split()[: count - found]
      if any(len(word) > 5 or not word.isdigit() for word in words):
        raise ValueError("something that is no number")
      numbers = np.array(words, dtype="S5").astype(np.uint32)
      parts.append(np.minimum(numbers, 2**16 - 1).astype(np.uint16))
      found, at = found + len(words), end
    samples = np.concatenate(parts)
  if len(samples) < count:
    raise ValueError(f"{len(samples)} of {count} samples")
  return samples


def _scaled(samples: np.ndarray, top: int) -> np.ndarray:
  """Returns samples of 8 or 16 bits, of such up to any number."""
  kind = np.dtype(np.uint8 if top < 256 else np.uint16)
  full = np.iinfo(kind).max
  out = np.empty(samples.shape, kind)
  for rows in bands(out):
    part = samples[rows]
    if int(part.max()) > top:
      raise ValueError(f"a sample of {part.max()}, above {top}")
    if top != full:
      part = (part.astype(np.uint64) * full + top // 2) // top
    out[rows] = part
  return out


def _read_floats(head: Header, data: bytes) -> Found:
  """Reads PFM: linear light, by its programs; the lowest row first."""
  samples = _raw(head, data, "<f4" if head.top < 0 else ">f4")
  samples = samples.reshape(head.height, head.width, head.samples)[::-1]
  return Found(format="PFM", pixels=samples.astype(np.float32), linear=True)
