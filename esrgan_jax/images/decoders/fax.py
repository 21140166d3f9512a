"""Bilevel parts of a TIFF, coded as for facsimile (ITU-T T.4 and T.6).

Their decoder makes white of what is missing, as a receiver of a broken call
should. Here that is damage. So a row that begins with black is put behind the
data, and a row more is decoded: it is black only if all before it were whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from esrgan_jax.images import limits

MODIFIED_HUFFMAN, GROUP_3, GROUP_4 = 2, 3, 4
# A white run of 0, for rows begin with white; T.6 has its mode before that.
_NO_WHITE = "00110101"
_HORIZONTAL = "001"
# Black runs of some pixels, by the bits of their codes: T.4, table 2.
_BLACK = {2: "11", 3: "010", 4: "0011", 5: "00011", 6: "000101", 7: "0000100"}
_BLACK |= {8: "00000100", 9: "000011000"}
# That a code of a run or a mode can end in.
_MOST_ZEROS = 3
_END_OF_LINE = "000000000001"
_TWO_DIMENSIONS = 1  # Of `options`: rows may depend on those above.


def decode(
  part: bytes | memoryview,
  rows: int,
  width: int,
  compression: int,
  options: int,
) -> np.ndarray:
  """Decodes a part.

  Args:
    part: Its bytes, the first bit highest.
    rows: How many there must be.
    width: Pixels of a row.
    compression: TIFF's number.
    options: Of group 3, TIFF's tag 292.

  Returns:
    uint8 `[rows, width]` of 0 and 1.

  Raises:
    ValueError: If rows are missing or damaged.
  """
  import imagecodecs

  # T.6 has a bit a row at least. In T.4, a run of 2560 takes 12 bits, and one
  # of less ends the row.
  least = 1 if compression == GROUP_4 else 12 * (width // 2560) + 2
  limits.check_bits(width, rows, rows * least, len(part))
  for probed in _probed(bytes(part), compression, options):
    try:
      if compression == MODIFIED_HUFFMAN:
        pixels = imagecodecs.ccittrle_decode(probed, rows + 1, width)
      elif compression == GROUP_3:
        pixels = imagecodecs.ccittfax3_decode(
          probed, rows + 1, width, t4options=options
        )
      else:
        pixels = imagecodecs.ccittfax4_decode(probed, rows + 1, width)
    except RuntimeError:
      continue
    if pixels[-1, 0]:
      return pixels[:-1]
  raise ValueError("rows that are missing or damaged")


def _probed(part: bytes, compression: int, options: int) -> Iterator[bytes]:
  """Yields the data, from where it may end on followed by a black row."""
  if compression == MODIFIED_HUFFMAN:
    # Rows are whole bytes, the last of which may be 0 by itself.
    short = part.rstrip(b"\0")
    for end in sorted({len(part), len(short), len(short) + 1}, reverse=True):
      if end <= len(part):
        yield part[:end] + _with_black("")
    return
  bits = f"{int.from_bytes(part, 'big'):0{8 * len(part)}b}"
  mode = _HORIZONTAL
  if compression == GROUP_3:
    mode = "1" if options & _TWO_DIMENSIONS else ""
    bits = bits.rstrip("0")
    while bits.endswith(_END_OF_LINE + mode):
      bits = bits.removesuffix(_END_OF_LINE + mode).rstrip("0")
  else:
    end = bits.find(2 * _END_OF_LINE)
    if end >= 0:
      yield _with_black(bits[:end] + mode)
      return
    # Some leave that out, and fill the last byte with zeros.
    bits = bits.rstrip("0")
  for zeros in range(_MOST_ZEROS + 1):
    yield _with_black(bits + zeros * "0" + mode)


def _with_black(bits: str) -> bytes:
  """Packs bits and black pixels, which end with a byte."""
  bits += _NO_WHITE
  bits += _BLACK[2 + (-len(bits) - 2) % 8]
  return int(bits, 2).to_bytes(len(bits) // 8, "big")
