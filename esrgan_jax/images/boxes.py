"""Boxes of ISO's base media files: of AVIF, HEIC, JPEG XL and JPEG 2000."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from esrgan_jax.images import limits


def walk(
  data: bytes | memoryview, at: int = 0, end: int | None = None
) -> Iterator[tuple[bytes, memoryview]]:
  """Yields kind and body of each box.

  Args:
    data: Holds them.
    at: Where the first one begins.
    end: Where the last one ends; None: with the data.

  Raises:
    ValueError: If one reaches beyond the end, or there are too many.

  >>> [(kind, bytes(body)) for kind, body in walk(pack(b"free", b"abc"))]
  [(b'free', b'abc')]
  """
  view = memoryview(data)
  end = len(view) if end is None else end
  count = 0
  while at < end:
    limits.check_pieces(count := count + 1, "boxes")
    if at + 8 > end:
      raise ValueError("a box beyond the end")
    size, kind = struct.unpack_from(">I4s", view, at)
    begin = at + 8
    if size == 1:
      if at + 16 > end:
        raise ValueError("a box beyond the end")
      (size,) = struct.unpack_from(">Q", view, begin)
      begin += 8
    elif size == 0:  # The last one.
      size = end - at
    if not begin - at <= size <= end - at:
      raise ValueError(f"a box of {size} bytes")
    yield kind, view[begin : at + size]
    at += size


def pack(kind: bytes, *bodies: bytes) -> bytes:
  """Returns a box of these bytes."""
  size = 8 + sum(map(len, bodies))
  if size < 2**32:
    return b"".join((struct.pack(">I4s", size, kind), *bodies))
  return b"".join((struct.pack(">I4sQ", 1, kind, size + 8), *bodies))


def first(found: Iterable[tuple[bytes, memoryview]], kind: bytes) -> memoryview:
  """Returns the body of the first box of a kind.

  Raises:
    ValueError: If there is none.
  """
  for seen, body in found:
    if seen == kind:
      return body
  raise ValueError(f"no box {kind.decode('latin-1')!r}")
