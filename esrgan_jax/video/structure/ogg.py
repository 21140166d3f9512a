"""Ogg: pages (RFC 3533)."""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Iterator

from esrgan_jax.video.structure import faults

__all__ = ["check", "losses"]

# Ogg's checksum begins with the highest bit of a byte, zlib's with the lowest.
_TURNED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def check(data: mmap.mmap) -> None:
  """Refuses an Ogg with a page that is cut short, damaged or not there."""
  at, size = 0, len(data)
  numbers: dict[bytes, int] = {}
  while at < size:
    head = data[at : at + 27]
    if head[:4] != b"OggS"[: len(head)]:
      if faults.is_filling(data, at):
        return
      raise faults.damaged(at)
    count = head[26] if len(head) == 27 else 0
    lengths = data[at + 27 : at + 27 + count]
    stop = at + 27 + count + sum(lengths)
    if len(lengths) < count or stop > size or len(head) < 27:
      raise faults.cut(size, stop)
    page = head[:22] + bytes(4) + data[at + 26 : stop]
    serial, number, checksum = struct.unpack_from("<4sII", head, 14)
    if number != numbers.get(serial, number) or checksum != _checksum(page):
      raise faults.damaged(at)
    numbers[serial] = number + 1
    at = stop


def _checksum(page: bytes) -> int:
  turned = zlib.crc32(page.translate(_TURNED), 0xFFFFFFFF) ^ 0xFFFFFFFF
  return int(f"{turned:032b}"[::-1], 2)


def losses(data: mmap.mmap) -> Iterator[str]:
  """Yields a sentence if a stream of an Ogg has no page that is its last."""
  at, ended = 0, {}
  while data[at : at + 4] == b"OggS":
    count = data[at + 26]
    ended[data[at + 14 : at + 18]] = data[at + 5] & 4 > 0
    at += 27 + count + sum(data[at + 27 : at + 27 + count])
  if not all(ended.values()):
    yield "it has no end: it may be cut short"
