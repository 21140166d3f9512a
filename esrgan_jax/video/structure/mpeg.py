"""MPEG-TS, M2TS and MPEG-PS: packets (ISO/IEC 13818-1)."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator

import numpy as np

__all__ = ["TS_PACKET", "ps_losses", "ts_losses"]

TS_PACKET = 188  # Bytes.
_PACKETS = 2**16  # That are looked at in one go.
_FILLING = 0x1FFF  # The number of what is no stream.


def ts_losses(data: mmap.mmap) -> Iterator[str]:
  """Yields sentences on what MPEG-TS lacks, by its packets' counters."""
  # Of M2TS, times are before them.
  before = 0 if data[: TS_PACKET + 1 : TS_PACKET].count(b"G") == 2 else 4
  size = before + TS_PACKET
  count, rest = divmod(len(data), size)
  if rest:
    yield f"cut short: it ends with {rest} bytes of a packet of {size}"
  last: dict[int, int] = {}
  places = bad = 0
  for first in range(0, count, _PACKETS):
    number = min(_PACKETS, count - first)
    packets = np.frombuffer(data, np.uint8, number * size, first * size)
    packets = packets.reshape(number, size)[:, before:]
    sound = (packets[:, 0] == ord("G")) & (packets[:, 1] < 0x80)
    bad += number - int(sound.sum()) + _bad_starts(packets[sound])
    places += _jumps(packets[sound, :8].astype(np.int32), last)
  if bad:
    yield f"damaged packets: {bad} of {count}"
  if places:
    yield (
      f"packets are missing by their counters, {_times(places)}, unless it is"
      " made of several recordings"
    )


def _times(count: int) -> str:
  return f"at {count} place{'s' * (count > 1)}"


def _streams(packets: np.ndarray) -> np.ndarray:
  """Returns the number of each packet's stream; `[N]`, int32."""
  return (packets[:, 1] & 0x1F).astype(np.int32) << 8 | packets[:, 2]


def _bad_starts(packets: np.ndarray) -> int:
  """Counts packets that begin something, but not as others of their stream."""
  begin = (packets[:, 1] & 0x40 > 0) & (packets[:, 3] & 0x10 > 0)
  packets = packets[begin & (_streams(packets) != _FILLING)]
  adapted = packets[:, 3] & 0x20 > 0
  places = 4 + np.where(adapted, packets[:, 4].astype(np.int32) + 1, 0)
  places = np.minimum(places, TS_PACKET - 3)
  rows = np.arange(len(packets))
  head = [
    packets[rows, places + n] == value for n, value in enumerate((0, 0, 1))
  ]
  is_good = np.all(head, axis=0)
  streams = _streams(packets)
  # Tables begin in another way.
  return int((np.isin(streams, streams[is_good]) & ~is_good).sum())


def _jumps(heads: np.ndarray, last: dict[int, int]) -> int:
  """Counts where counters do not go on.

  Args:
    heads: `[N, 8]`, how packets begin.
    last: Of a stream's number, its counter; is brought up to date.
  """
  streams = _streams(heads)
  # With a payload, and of a stream; others do not count.
  heads = heads[keep := (heads[:, 3] & 0x10 > 0) & (streams != _FILLING)]
  streams = streams[keep]
  # A field of adaptation may say that a counter begins anew.
  is_anew = (
    (heads[:, 3] & 0x20 > 0) & (heads[:, 4] > 0) & (heads[:, 5] & 0x80 > 0)
  )
  found = 0
  for stream in np.unique(streams).tolist():
    own = streams == stream
    counters = heads[own, 3] & 0xF
    steps = np.diff(counters, prepend=last.get(stream, counters[0])) % 16
    if stream not in last:
      steps[0] = 1
    # A packet may be sent twice.
    found += int(((steps > 1) & ~is_anew[own]).sum())
    last[stream] = int(counters[-1])
  return found


_PACK, _END = 0xBA, 0xB9  # Of MPEG-PS: begins, and is all.
_CODE = re.compile(rb"\x00\x00\x01[\xb9-\xff]")


def ps_losses(data: mmap.mmap) -> Iterator[str]:
  """Yields a sentence if MPEG-PS breaks off in a packet, or between them."""
  at, size, holes = 0, len(data), 0
  while at < size:
    head = data[at : at + 14]
    kind = head[3] if head[:3] == b"\0\0\1" and len(head) > 3 else 0
    if kind < _END:
      begin, at = at, _next_code(data, at)
      holes += bool(data[begin:at].strip(b"\0"))
    elif kind == _END:
      at += 4
    elif kind == _PACK:
      # Of MPEG-1, or of MPEG-2 with what fills it.
      is_second = len(head) > 4 and head[4] >> 6 == 1
      at += 14 + (head[13] & 7 if len(head) == 14 else 0) if is_second else 12
    else:
      at += 6 + int.from_bytes(head[4:6])
  if at > size:
    yield f"cut short: {size} bytes of {at}"
  if holes:
    yield f"damaged, {_times(holes)}"


def _next_code(data: mmap.mmap, at: int) -> int:
  found = _CODE.search(data, at)
  return found.start() if found else len(data)
