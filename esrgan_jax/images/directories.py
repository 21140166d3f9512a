"""Directories of tags, which TIFF files and EXIF blocks are made of.

They are read within bounds, whoever wrote them, and written as they were read:
values stay bytes in the file's own order. No pointer is followed but to the
sub-directories that are known, and those have a fixed depth.
"""

from __future__ import annotations

import fractions
import struct
from collections.abc import Container, Mapping
from typing import Any, NamedTuple, TypeAlias

EXIF, GPS, INTEROP = 34665, 34853, 40965
# Directory -> the directories that it points to.
_GROUPS: Mapping[int, Any] = {EXIF: {INTEROP: {}}, GPS: {}}
# Bytes of a value, by kind: from TIFF 6.0 and, from 16 on, BigTIFF.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4}
_SIZES |= {12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_INTEGERS |= {6: "b", 8: "h", 9: "i", 17: "q"}
_MOST_TAGS = 4096


class Place(NamedTuple):
  """Where a tag's value lies in a file."""

  kind: int
  count: int
  at: int
  size: int


class Value(NamedTuple):
  """A tag's value, in the byte order of where it came from."""

  kind: int
  raw: bytes


# Tag -> value, or -> the directory that it points to.
Tree: TypeAlias = dict[int, "Value | Tree"]


class Layout(NamedTuple):
  """How numbers are laid out.

  Attributes:
    order: "<" or ">".
    big: Whether offsets have 64 bits.
  """

  order: str
  big: bool = False


def layout_of(head: bytes) -> tuple[Layout, int]:
  """Tells a TIFF structure's layout, and where its first directory lies."""
  order = {b"II": "<", b"MM": ">"}.get(bytes(head[:2]))
  if order is None:
    raise ValueError("no TIFF structure")
  (magic,) = struct.unpack_from(order + "H", head, 2)
  if magic == 43 and struct.unpack_from(order + "HH", head, 4) == (8, 0):
    return Layout(order, big=True), struct.unpack_from(order + "Q", head, 8)[0]
  if magic != 42:
    raise ValueError("no TIFF structure")
  return Layout(order), struct.unpack_from(order + "I", head, 4)[0]


def read_directory(
  data: bytes, offset: int, layout: Layout
) -> tuple[dict[int, Place], int]:
  """Reads which tags there are, and where; values stay where they are.

  Args:
    data: The whole file.
    offset: Where the directory lies.
    layout: Of its numbers.

  Returns:
    The tags whose values lie in the file, and the offset of the next directory.

  Raises:
    ValueError: If the directory begins beyond the end, or is too large.
  """
  order, big = layout
  entry = struct.Struct(order + ("HHQ" if big else "HHI"))
  offset_format, room = (order + "Q", 8) if big else (order + "I", 4)
  count_format, count_size = (order + "Q", 8) if big else (order + "H", 2)
  if not 8 <= offset <= len(data) - count_size:
    raise ValueError("a directory beyond the end")
  (count,) = struct.unpack_from(count_format, data, offset)
  if count > _MOST_TAGS:
    raise ValueError(f"a directory of {count} tags")
  begin, step = offset + count_size, entry.size + room
  # One that is cut short has the tags that are there.
  end = begin + min(count, (len(data) - begin) // step) * step
  places = {}
  for at in range(begin, end, step):
    tag, kind, number = entry.unpack_from(data, at)
    size = number * _SIZES.get(kind, 0)
    start = at + entry.size
    if size > room:
      (start,) = struct.unpack_from(offset_format, data, start)
    # The first of its kind counts, as for most readers.
    if size and start + size <= len(data) and tag not in places:
      places[tag] = Place(kind, number, start, size)
  following = 0
  if end + room <= len(data):
    (following,) = struct.unpack_from(offset_format, data, end)
  return places, following


def lost_tags(data: bytes, offset: int, layout: Layout) -> list[int]:
  """Returns the tags of a directory whose values lie beyond the end."""
  order, big = layout
  entry = struct.Struct(order + ("HHQ8x" if big else "HHI4x"))
  head, room = (8, 8) if big else (2, 4)
  (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, offset)
  begin, lost = offset + head, []
  whole = min(count, (len(data) - begin) // entry.size)
  for at in range(begin, begin + whole * entry.size, entry.size):
    tag, kind, number = entry.unpack_from(data, at)
    size = number * _SIZES.get(kind, 0)
    if size > room:
      (start,) = struct.unpack_from(
        order + ("Q" if big else "I"), data, at + entry.size - room
      )
      if start + size > len(data):
        lost.append(tag)
  return lost


def end_of(data: bytes, offset: int, layout: Layout) -> int:
  r"""Tells where a directory ends, by its own words.

  >>> end_of(b"II*\0\x08\0\0\0\2\0", 8, Layout("<"))
  38
  """
  form, head, step, pointer = ("Q", 8, 20, 8) if layout.big else ("H", 2, 12, 4)
  (count,) = struct.unpack_from(layout.order + form, data, offset)
  return offset + head + step * count + pointer


def value_of(data: bytes, place: Place | None) -> Value | None:
  """Returns a tag's value, of any size; None if there is no such tag."""
  if place is None:
    return None
  return Value(place.kind, bytes(data[place.at : place.at + place.size]))


def integers(value: Value | None, order: str) -> tuple[int, ...]:
  """Returns a value's integers; none if it is another kind, or None."""
  form = None if value is None else _INTEGERS.get(value.kind)
  if form is None:
    return ()
  return struct.unpack(
    f"{order}{len(value.raw) // _SIZES[value.kind]}{form}", value.raw
  )


def rational(value: Value | None, order: str) -> fractions.Fraction | None:
  """Returns a value's first number, rational or whole; None if it has none."""
  if value is None or value.kind not in (5, 10):
    whole = integers(value, order)
    return fractions.Fraction(whole[0]) if whole else None
  form = order + ("II" if value.kind == 5 else "ii")
  above, below = struct.unpack_from(form, value.raw)
  return fractions.Fraction(above, below) if below else None


def read_tree(
  data: bytes,
  offset: int,
  layout: Layout,
  *,
  most: int,
  only: Container[int] | None = None,
) -> Tree:
  """Reads a directory's values, and its sub-directories.

  Args:
    data: The whole file or block.
    offset: Where the directory lies.
    layout: Of its numbers.
    most: Bytes that all values may have together. Those of a sound block do
      not overlap, so that they have no more than the block.
    only: The tags to read of the directory itself; the others are passed over.

  Returns:
    Tag -> value, or -> tree.

  Raises:
    ValueError: If values overlap, or the directory itself is damaged; a damaged
      sub-directory is left out.
  """
  left = most

  def read(offset, groups, only):
    nonlocal left
    tree: Tree = {}
    for tag, place in read_directory(data, offset, layout)[0].items():
      if only is not None and tag not in only:
        continue
      left -= place.size
      if left < 0:
        raise _OverlapError("values that overlap")
      if tag not in groups:
        # Offsets have no meaning elsewhere; BigTIFF's kinds have no place in
        # an EXIF block.
        if place.kind <= 12:
          tree[tag] = value_of(data, place)
        continue
      try:
        (below,) = integers(value_of(data, place), layout.order)
        tree[tag] = read(below, groups[tag], None)
      except _OverlapError:
        raise
      except ValueError:
        continue
    return tree

  return read(offset, _GROUPS, only)


class _OverlapError(ValueError):
  """Ends all reading, of the directories above as well."""


def short(value: int, order: str) -> Value:
  """Makes a value of one 16-bit integer."""
  return Value(3, struct.pack(order + "H", value))


def long(value: int, order: str) -> Value:
  """Makes a value of one 32-bit integer."""
  return Value(4, struct.pack(order + "I", value))


def swapped(tree: Tree, order: str) -> Tree:
  """Returns a tree of byte order `order` in the other one."""
  other = {"<": ">", ">": "<"}[order]

  def swap(value: Value) -> Value:
    # Of a rational, either half.
    width = _SIZES[value.kind] // (2 if value.kind in (5, 10) else 1)
    form = f"{len(value.raw) // width}{' BH I   Q'[width]}"
    numbers = struct.unpack(order + form, value.raw)
    return Value(value.kind, struct.pack(other + form, *numbers))

  return {
    tag: swapped(value, order) if isinstance(value, dict) else swap(value)
    for tag, value in tree.items()
  }


def pack_tree(tree: Tree, offset: int, layout: Layout) -> bytes:
  """Returns a directory that will lie at `offset`, all it points to after it.

  Args:
    tree: Values in the byte order of `layout`.
    offset: An even number.
    layout: Of the numbers.
  """
  order, big = layout
  entry, pointer, room = ("HHQ", "Q", 8) if big else ("HHI", "I", 4)
  head = struct.pack(order + ("Q" if big else "H"), len(tree))
  step = struct.calcsize(order + entry) + room
  after = offset + len(head) + len(tree) * step + room
  entries, body = bytearray(), bytearray()
  for tag in sorted(tree):
    value = tree[tag]
    body += bytes(-(after + len(body)) % 2)
    at = after + len(body)
    if isinstance(value, dict):
      body += pack_tree(value, at, layout)
      value = Value(16 if big else 4, struct.pack(order + pointer, at))
    kind, raw = value
    if len(raw) > room:
      body += raw
      field = struct.pack(order + pointer, at)
    else:
      field = raw.ljust(room, b"\0")
    count = len(raw) // _SIZES[kind]
    entries += struct.pack(order + entry, tag, kind, count) + field
  return head + bytes(entries) + bytes(room) + bytes(body)
