"""Bilevel parts of a TIFF, coded as for facsimile (ITU-T T.4 and T.6).

Their decoders make white of what is missing, as a receiver of a broken call
should. Here that is damage, and is found by what is put behind the data: no
code in T.4's, and in T.6's one row more, which begins with black.
"""

from __future__ import annotations

import numpy as np

from esrgan_jax.images import limits

MODIFIED_HUFFMAN, GROUP_3, GROUP_4 = 2, 3, 4
# T.6: horizontal mode; a white run of 0, a black one of 2.
_BLACK_ROW = "001" + "00110101" + "11"
_END_OF_BLOCK = 2 * "000000000001"


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

  if compression == GROUP_4:
    # A row is a bit at least.
    limits.check_bits(width, rows, rows, len(part))
    return _decode_group_4(bytes(part), rows, width)
  # A run of 2560 takes 12 bits, and one of less ends the row.
  limits.check_bits(width, rows, rows * (12 * (width // 2560) + 2), len(part))
  part = bytes(part) + bytes(64)
  if compression == MODIFIED_HUFFMAN:
    return imagecodecs.ccittrle_decode(part, rows, width)
  return imagecodecs.ccittfax3_decode(part, rows, width, t4options=options)


def _decode_group_4(part: bytes, rows: int, width: int) -> np.ndarray:
  import imagecodecs

  bits = f"{int.from_bytes(part, 'big'):0{8 * len(part)}b}"
  end = bits.find(_END_OF_BLOCK)
  if end >= 0:
    ends = [end]
  else:
    # Left out by some. Then the last byte is filled up with zeros.
    last = bits.rindex("1") + 1 if "1" in bits else 0
    ends = range(last, min(last + 8, len(bits) + 1))
  for end in ends:
    probed = bits[:end] + _BLACK_ROW
    probed += "1" * (-len(probed) % 8)
    probed = int(probed, 2).to_bytes(len(probed) // 8, "big")
    try:
      pixels = imagecodecs.ccittfax4_decode(probed, rows + 1, width)
    except imagecodecs.CcittError:
      continue
    if pixels[-1, 0]:
      return pixels[:-1]
  raise ValueError("rows are missing")
