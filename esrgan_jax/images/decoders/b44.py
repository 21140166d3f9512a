"""OpenEXR's B44: blocks of 4 x 4 halves in 14 bytes, flat ones in 3."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_BLOCK, _FLAT = 14, 3
# A third byte from here on says that a block is flat.
_FLAT_FROM = 13 << 2


def decode(
  data: bytes, rows: int, columns: int, kinds: Sequence[np.dtype]
) -> np.ndarray:
  """Unpacks a chunk.

  Args:
    data: The chunk.
    rows: Of it.
    columns: Of it.
    kinds: Of samples, by channel; those that are no halves lie there as such.

  Returns:
    uint8: for each row, the channels one after the other.
  """
  out, at = [], 0
  for kind in kinds:
    if kind.itemsize == 2:
      plane, at = _channel(data, at, rows, columns)
    else:
      size = rows * columns * kind.itemsize
      plane = np.frombuffer(data, np.uint8, size, at)
      at += size
    out.append(plane.view(np.uint8).reshape(rows, -1))
  return np.concatenate(out, axis=1).reshape(-1)


def _channel(
  data: bytes, at: int, rows: int, columns: int
) -> tuple[np.ndarray, int]:
  """Returns a channel's halves as uint16, and where its blocks end."""
  down, across = -(-rows // 4), -(-columns // 4)
  starts = []
  for _ in range(down * across):
    starts.append(at)
    at += _FLAT if data[at + 2] >= _FLAT_FROM else _BLOCK
  if at > len(data):
    raise ValueError("a chunk that is cut short")
  padded = np.frombuffer(data + bytes(_BLOCK), np.uint8)
  table = padded[np.array(starts)[:, None] + np.arange(_BLOCK)].astype(np.int64)
  flat = table[:, 2] >= _FLAT_FROM
  shift = np.where(flat, 0, table[:, 2] >> 2)[:, None]
  # Fifteen steps of six bits, behind the first value and the shift.
  bits = np.unpackbits(table[:, 2:].astype(np.uint8), axis=1)[:, 6:]
  steps = bits.reshape(len(table), 15, 6) @ (1 << np.arange(5, -1, -1))
  steps = (steps - 0x20) << shift
  steps[flat] = 0
  values = np.empty((len(table), 4, 4), np.int64)  # By column, then by row.
  values[:, 0, 0] = table[:, 0] << 8 | table[:, 1]
  # Down the first column; then each row from the left.
  values[:, 0, 1:] = steps[:, :3]
  values[:, 0] = np.cumsum(values[:, 0], axis=1)
  values[:, 1:] = steps[:, 3:].reshape(-1, 3, 4)
  values = np.cumsum(values, axis=1) & 0xFFFF
  positive = values & 0x8000 != 0
  values = np.where(positive, values & 0x7FFF, ~values & 0xFFFF)
  blocks = values.reshape(down, across, 4, 4).transpose(0, 3, 1, 2)
  plane = blocks.reshape(4 * down, 4 * across)[:rows, :columns]
  return np.ascontiguousarray(plane.astype("<u2")), at
