"""OpenEXR's PIZ: a table of values, Huffman's code, and a wavelet of Haar's."""

from __future__ import annotations

import array
import struct
from collections.abc import Sequence

import numpy as np

_SYMBOLS = 2**16 + 1
_LONGEST = 58
# Codes up to here are looked up, at every bit at once; longer ones are rare.
_WINDOW = 16
_PART = 2**16  # Bytes whose bits are looked up at once.
_SHORT_RUN, _LONG_RUN = 59, 63  # Of symbols without a code.


def decode(
  data: bytes, rows: int, columns: int, words: Sequence[int]
) -> np.ndarray:
  """Unpacks a chunk.

  Args:
    data: The chunk.
    rows: Of it.
    columns: Of it.
    words: 16-bit words of a sample, by channel.

  Returns:
    uint8: for each row, the channels one after the other.
  """
  first, last = struct.unpack_from("<HH", data)
  at, bitmap = 4, np.zeros(2**13, np.uint8)
  if first <= last:
    if last >= len(bitmap):
      raise ValueError(f"a table up to {last}")
    count = last - first + 1
    bitmap[first : last + 1] = np.frombuffer(data, np.uint8, count, at)
    at += count
  used = np.unpackbits(bitmap, bitorder="little")
  used[0] = 1
  values = np.flatnonzero(used).astype(np.uint16)
  (length,) = struct.unpack_from("<i", data, at)
  at += 4
  if not 0 <= length <= len(data) - at:
    raise ValueError("a chunk that is cut short")
  total = rows * columns * sum(words)
  symbols = _huffman(data[at : at + length], total)
  out, at = [], 0
  for count in words:
    end = at + rows * columns * count
    plane = symbols[at:end].reshape(rows, columns, count).copy()
    for word in range(count):
      _unwave(plane[..., word], len(values) - 1)
    out.append(plane.reshape(rows, -1))
    at = end
  joined = np.concatenate(out, axis=1)
  # A sound one has no others.
  if int(joined.max()) >= len(values):
    raise ValueError("a value that is not in the table")
  return values[joined].astype("<u2").view(np.uint8).reshape(-1)


def _huffman(data: bytes, total: int) -> np.ndarray:
  """Decodes so many symbols."""
  first, last, _, bits, _ = struct.unpack_from("<5I", data)
  if not first <= last < _SYMBOLS:
    raise ValueError(f"codes of {first} to {last}")
  lengths, at = _lengths(data, 20, first, last)
  if bits > 8 * (len(data) - at):
    raise ValueError("a chunk that is cut short")
  codes = _canonical(lengths)
  return _symbols(data[at : at + -(-bits // 8)], bits, codes, last, total)


def _lengths(
  data: bytes, at: int, first: int, last: int
) -> tuple[np.ndarray, int]:
  """Reads the lengths of codes, 6 bits each; returns where they end."""
  lengths = np.zeros(_SYMBOLS, np.int64)
  held = number = 0

  def take(count: int) -> int:
    nonlocal held, number, at
    while held < count:
      number = (number << 8 | data[at]) & (2**32 - 1)
      at, held = at + 1, held + 8
    held -= count
    return number >> held & ((1 << count) - 1)

  symbol = first
  while symbol <= last:
    length = take(6)
    if length == _LONG_RUN:
      symbol += take(8) + 2 + _LONG_RUN - _SHORT_RUN
    elif length >= _SHORT_RUN:
      symbol += length - _SHORT_RUN + 2
    else:
      lengths[symbol] = length
      symbol += 1
  if symbol > last + 1:
    raise ValueError("codes beyond the last")
  return lengths, at


def _canonical(lengths: np.ndarray) -> list[tuple[int, int, list[int]]]:
  """Returns each length, its first code, and its symbols."""
  counts = np.bincount(lengths, minlength=_LONGEST + 1)
  table, code = [], 0
  for length in range(_LONGEST, 0, -1):
    count = int(counts[length])
    if code + count > 1 << length:
      raise ValueError("more codes than can be")
    if count:
      symbols = np.flatnonzero(lengths == length).tolist()
      table.append((length, code, symbols))
    code = (code + count) >> 1
  return table[::-1]


def _symbols(
  data: bytes,
  bits: int,
  codes: list[tuple[int, int, list[int]]],
  repeat: int,
  total: int,
) -> np.ndarray:
  """Follows the codes from bit to bit.

  What would be found at each bit is looked up for all at once.
  """
  table = np.zeros(2**_WINDOW, np.int32)
  for length, code, symbols in codes:
    if length > _WINDOW:
      continue
    step = 1 << (_WINDOW - length)
    at = code * step
    entries = np.repeat(np.array(symbols, np.int64) << 6 | length, step)
    table[at : at + len(entries)] = entries
  long = [code for code in codes if code[0] > _WINDOW]
  out = array.array("H")
  append, at, begin, end, found = out.append, 0, 0, 0, None
  while at < bits and len(out) < total:
    if at >= end:
      begin, end, found = _look_up(data, table, at)
    entry = found[at - begin] or _long(data, at, long)
    symbol, at = entry >> 6, at + (entry & 63)
    if symbol != repeat:
      append(symbol)
    else:
      count = _bits(data, at, 8)
      at += 8
      if not out:
        raise ValueError("a run of nothing")
      out += out[-1:] * count
  if len(out) != total or at > bits:
    raise ValueError(f"{len(out)} of {total} values")
  return np.frombuffer(out, np.uint16)


def _look_up(
  data: bytes, table: np.ndarray, at: int
) -> tuple[int, int, memoryview]:
  """Looks up what begins at each of many bits, the first of which is `at`."""
  first = at // 8
  part = data[first : first + _PART + 2]
  size = min(_PART, len(data) - first)
  padded = np.frombuffer(part + bytes(2), np.uint8).astype(np.uint32)
  three = padded[:size] << 16 | padded[1 : size + 1] << 8
  three |= padded[2 : size + 2]
  shifts = np.arange(8, 0, -1, dtype=np.uint32)
  windows = three[:, None] >> shifts & np.uint32(2**_WINDOW - 1)
  found = memoryview(table[windows.reshape(-1)])
  return 8 * first, 8 * (first + size), found


def _bits(data: bytes, at: int, count: int) -> int:
  """Returns so many bits, zeros behind the end."""
  part = data[at // 8 : at // 8 + 9].ljust(9, b"\0")
  number = int.from_bytes(part, "big")
  return number >> (72 - at % 8 - count) & ((1 << count) - 1)


def _long(data: bytes, at: int, codes: list[tuple[int, int, list[int]]]) -> int:
  """Finds a long code."""
  for length, first, symbols in codes:
    index = _bits(data, at, length) - first
    if 0 <= index < len(symbols):
      return symbols[index] << 6 | length
  raise ValueError("no code of a value")


def _unwave(plane: np.ndarray, top: int) -> None:
  """Undoes the wavelet of `[rows, columns]`, in place."""
  rows, columns = plane.shape
  undo = _undo_14 if top < 2**14 else _undo_16
  step = 1 << (min(rows, columns).bit_length() - 1)
  while step > 1:
    half = step // 2
    # Squares of four, one more column, and one more row.
    down, across = rows // step * step, columns // step * step
    a, b = plane[0:down:step], plane[half:down:step]
    aa, ab = a[:, 0:across:step], a[:, half:across:step]
    ba, bb = b[:, 0:across:step], b[:, half:across:step]
    i00, i10 = undo(aa, ba)
    i01, i11 = undo(ab, bb)
    aa[...], ab[...] = undo(i00, i01)
    ba[...], bb[...] = undo(i10, i11)
    if columns & half:
      a_last, b_last = a[:, across], b[:, across]
      a_last[...], b_last[...] = undo(a_last, b_last)
    if rows & half:
      last = plane[down]
      even, odd = last[0:across:step], last[half:across:step]
      even[...], odd[...] = undo(even, odd)
    step = half


def _undo_14(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, ...]:
  """Undoes a step of values below 2^14."""
  low = low.astype(np.int16).astype(np.int32)
  high = high.astype(np.int16).astype(np.int32)
  first = low + (high & 1) + (high >> 1)
  return first.astype(np.uint16), (first - high).astype(np.uint16)


def _undo_16(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, ...]:
  """Undoes a step modulo 2^16."""
  low, high = low.astype(np.int32), high.astype(np.int32)
  second = (low - (high >> 1)) & 0xFFFF
  first = (high + second - 0x8000) & 0xFFFF
  return first.astype(np.uint16), second.astype(np.uint16)
