"""Matroska and WebM: elements of EBML (RFC 8794, RFC 9559)."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

from esrgan_jax.video.structure import faults

__all__ = ["check"]

_SEGMENT, _CLUSTER, _TRACKS = 0x18538067, 0x1F43B675, 0x1654AE6B
_TRACK, _TRACK_NUMBER = 0xAE, 0xD7
_BLOCK_GROUP, _BLOCKS = 0xA0, {0xA1, 0xA3}
_ANYWHERE = {0xEC, 0xBF}  # What is void, and checksums.
# Seek head, info, tracks, clusters, cues, attachments, chapters, tags.
_IN_SEGMENT = {0x114D9B74, 0x1549A966, _TRACKS, _CLUSTER, 0x1C53BB6B}
_IN_SEGMENT |= {0x1941A469, 0x1043A770, 0x1254C367}
# Of a cluster and of its groups of blocks: times, what is silent, places,
# sizes; durations, references, additions, states, padding, slices.
_IN_CLUSTER = {0xE7, 0x5854, 0xA7, 0xAB, _BLOCK_GROUP, *_BLOCKS}
_IN_CLUSTER |= {0x9B, 0xFA, 0xFB, 0x75A1, 0xA4, 0x75A2, 0x8E, 0xC8}


def check(data: mmap.mmap) -> None:
  """Refuses Matroska that is shorter than it says, or whose elements break off.

  Outside clusters, an element that is not known counts if one that is follows
  it: programs have some of their own.
  """
  at, size = 0, len(data)
  for _ in range(3):  # The header, perhaps something void, the segment.
    identity, begin, length = _head(data, at)
    at = size if length is None else begin + length
    if identity == _SEGMENT:
      break
  else:
    return  # FFmpeg may know what that is.
  if at > size:
    raise faults.cut(size, at)
  end, at = at, begin
  tracks: set[int] = set()
  cluster = None  # Where the one ends that is being read.
  while at < end:
    if at == cluster:
      cluster = None
    identity, begin, length = _head(data, at)
    stop = end if length is None else begin + length
    if cluster == end and identity in _IN_SEGMENT:
      cluster = None  # It did not say its length: the next one ends it.
    if stop > (cluster or end) or (length is None and identity != _CLUSTER):
      raise faults.damaged(at)
    inside = _IN_SEGMENT if cluster is None else _IN_CLUSTER
    if identity not in inside | _ANYWHERE:
      if cluster or (stop != end and not _is_known(data, stop)):
        raise faults.damaged(at)
    elif identity == _CLUSTER:
      cluster, stop = stop, begin
    elif identity == _BLOCK_GROUP:
      stop = begin  # Its parts have names of their own.
    elif identity == _TRACKS:
      tracks.update(_tracks(data, begin, stop))
    elif identity in _BLOCKS and not _is_block(data, begin, stop, tracks):
      raise faults.damaged(at)
    at = stop


def _is_known(data: mmap.mmap, at: int) -> bool:
  try:
    identity, _ = _number(data, at, keep=True)
  except ValueError:
    return False
  return identity in _IN_SEGMENT | _IN_CLUSTER | _ANYWHERE


def _is_block(data: mmap.mmap, at: int, end: int, tracks: set[int]) -> bool:
  """Tells whether a block is of a track, and frames fill it (RFC 9559, 10)."""
  try:
    track, at = _number(data, at)
    flags, count, at = data[at + 2], data[at + 3] + 1, at + 4
    if tracks and track not in tracks:
      return False
    if at > end or flags & 0x70:
      return False
    lacing = flags >> 1 & 3
    if lacing == 0:
      return True
    if lacing == 2:  # All are as long.
      return (end - at) % count == 0
    length = total = 0
    for number in range(count - 1):  # The last one has the rest.
      if lacing == 1:
        length = 0
        while data[at] == 255:
          length, at = length + 255, at + 1
        length, at = length + data[at], at + 1
      else:
        begin = at
        change, at = _number(data, at)
        half = (1 << 7 * (at - begin) - 1) - 1 if number else 0
        length = (change or 0) - half + (length if number else 0)
      total += length
      if length < 0:
        return False
    return at + total <= end
  except (ValueError, IndexError):
    return False


def _tracks(data: mmap.mmap, at: int, end: int) -> Iterator[int]:
  """Yields the numbers of tracks, as blocks name them."""
  for kind, begin, stop in _elements(data, at, end):
    parts = _elements(data, begin, stop) if kind == _TRACK else ()
    for identity, first, last in parts:
      if identity == _TRACK_NUMBER:
        yield int.from_bytes(data[first:last])


def _elements(
  data: mmap.mmap, at: int, end: int
) -> Iterator[tuple[int | None, int, int]]:
  while at < end:
    identity, begin, length = _head(data, at)
    stop = end if length is None else begin + length
    if stop > end:
      raise faults.damaged(at)
    yield identity, begin, stop
    at = stop


def _head(data: mmap.mmap, at: int) -> tuple[int | None, int, int | None]:
  """Returns an element's name, where its content begins, and how long that is.

  Raises:
    VideoError: If there is none.
  """
  try:
    identity, begin = _number(data, at, keep=True)
    length, begin = _number(data, begin)
  except ValueError:
    raise faults.damaged(at) from None
  return identity, begin, length


def _number(
  data: mmap.mmap, at: int, *, keep: bool = False
) -> tuple[int | None, int]:
  """Reads EBML's number, and where it ends; None stands for what is unknown.

  Raises:
    ValueError: If there is none.
  """
  head = data[at : at + 8]
  length = 9 - head[0].bit_length() if head else 9
  if length > len(head):
    raise ValueError("no number")
  value = int.from_bytes(head[:length])
  if not keep:
    mask = (1 << 7 * length) - 1
    value = None if value & mask == mask else value & mask
  return value, at + length
