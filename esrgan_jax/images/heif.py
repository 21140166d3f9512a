"""HEIF, the container of AVIF and HEIC: its items and their properties."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator

from esrgan_jax.images import boxes, limits
from esrgan_jax.images.bits import Bits

_MOST_ITEMS = 4096
_MOST_EXTENTS = 4096
_MOST_UNITS = 4096  # Of an AV1 stream, which has some three for a picture.
_XMP = b"application/rdf+xml"


@dataclasses.dataclass(kw_only=True)
class Item:
  """A picture, a part of one, or metadata.

  Attributes:
    kind: Its codec or the like, four letters.
    words: What its entry holds beside: of "mime", the type of its content.
    extents: Where it lies: (whether in the box of data, offset, length).
    properties: Kind and body of each; whether a reader must know it.
    refers: Kind of reference, and to which items.
  """

  kind: bytes
  words: bytes = b""
  extents: list[tuple[bool, int, int]] = dataclasses.field(default_factory=list)
  properties: list[tuple[bytes, bytes, bool]] = dataclasses.field(
    default_factory=list
  )
  refers: list[tuple[bytes, list[int]]] = dataclasses.field(
    default_factory=list
  )

  def named(self, kind: bytes) -> bytes | None:
    """Returns the first property of a kind."""
    return next((b for k, b, _ in self.properties if k == kind), None)

  @property
  def size(self) -> tuple[int, int] | None:
    """Width and height, as its property says."""
    body = self.named(b"ispe")
    return None if body is None else struct.unpack_from(">II", body, 4)

  @property
  def clean_size(self) -> tuple[int, int] | None:
    """Width and height of what is to be seen of it: a codec may want more.

    So do small pictures of HEVC: libheif makes 64 x 64 of them, and a crop.
    """
    size, body = self.size, self.named(b"clap") or b""
    if size is None or len(body) < 16:
      return size
    width, across, height, down = struct.unpack_from(">4I", body)
    if not (0 < width <= size[0] * across and 0 < height <= size[1] * down):
      return size
    return round(width / across), round(height / down)


@dataclasses.dataclass
class Heif:
  """A file's items, by their numbers."""

  data: memoryview
  brand: bytes
  primary: int
  items: dict[int, Item]
  inside: memoryview  # The box of data among the items.
  has_movie: bool

  @property
  def picture(self) -> Item:
    """The primary item."""
    return self.items[self.primary]

  def bytes_of(self, item: Item) -> bytes:
    """Returns what an item is made of."""
    parts = []
    for inside, at, length in item.extents:
      whole = self.inside if inside else self.data
      if length == 0:
        length = len(whole) - at
      if at + length > len(whole) or length <= 0:
        raise ValueError("an item beyond the end")
      parts.append(whole[at : at + length])
    total = sum(map(len, parts))
    if total > len(self.data):
      raise ValueError("an item whose parts overlap")
    return b"".join(parts)

  def referring(self, kind: bytes) -> Iterator[Item]:
    """Yields what refers to the primary item in such a way."""
    for item in self.items.values():
      for seen, targets in item.refers:
        if seen == kind and self.primary in targets:
          yield item

  def parts(self) -> list[Item]:
    """Returns the items of pixels of the primary one: itself, or its tiles."""
    if self.picture.kind not in (b"grid", b"iovl", b"iden"):
      return [self.picture]
    found = []
    for kind, targets in self.picture.refers:
      if kind == b"dimg":
        found += [self.items[t] for t in targets if t in self.items]
    return found

  def exif(self) -> bytes | None:
    """Returns the picture's EXIF block."""
    for item in self.referring(b"cdsc"):
      if item.kind == b"Exif":
        body = self.bytes_of(item)
        (skip,) = struct.unpack_from(">I", body)
        return body[4 + skip :]
    return None

  def xmp(self) -> bytes | None:
    """Returns the picture's XMP packet."""
    for item in self.referring(b"cdsc"):
      if item.kind == b"mime" and item.words.startswith(_XMP):
        return self.bytes_of(item)
    return None

  def orientation(self) -> int:
    """Returns its turns and mirrors as an orientation of EXIF."""
    orientation = 1
    for kind, body, _ in self.picture.properties:
      if kind == b"irot" and body:
        for _ in range(body[0] & 3):
          orientation = _TURNED[orientation]
      elif kind == b"imir" and body:
        orientation = _MIRRORED[body[0] & 1][orientation]
    return orientation


# An orientation, and what it is after a quarter turn to the left.
_TURNED = {1: 8, 2: 5, 3: 6, 4: 7, 5: 4, 6: 1, 7: 2, 8: 3}
# After top and bottom, or left and right, have changed sides.
_MIRRORED = (
  {1: 4, 2: 3, 3: 2, 4: 1, 5: 8, 6: 7, 7: 6, 8: 5},
  {1: 2, 2: 1, 3: 4, 4: 3, 5: 6, 6: 5, 7: 8, 8: 7},
)


def parse(data: bytes | memoryview) -> Heif:
  """Reads the structure of a file; nothing of the pixels."""
  view = memoryview(data)
  brand, meta, movie = b"", None, False
  for kind, body in boxes.walk(view):
    if kind == b"ftyp" and not brand:
      brand = bytes(body[:4])
    elif kind == b"meta" and meta is None:
      meta = body
    elif kind == b"moov":
      movie = True
  if meta is None:
    raise ValueError("no picture in it")
  return _parse_meta(view, meta, brand, movie)


def size_of(data: bytes) -> tuple[int, int]:
  """Returns width and height by a file's first bytes."""
  view, at = memoryview(data), 0
  while at + 8 <= len(view):
    size, kind = struct.unpack_from(">I4s", view, at)
    if kind == b"meta":
      head = _parse_meta(view, view[at + 8 : at + size], b"", False)
      # As they are read: libheif crops, libavif does not.
      is_avif = any(item.kind == b"av01" for item in head.items.values())
      size = head.picture.size if is_avif else head.picture.clean_size
      if size is None:
        break
      return size[::-1] if head.orientation() > 4 else size
    at += max(size, 8)
  raise ValueError("no header")


def _parse_meta(
  view: memoryview, meta: memoryview, brand: bytes, movie: bool
) -> Heif:
  """Reads the box that has the items."""
  found: dict[bytes, memoryview] = {}
  for kind, body in boxes.walk(meta, 4):
    found.setdefault(kind, body)
  wide = found[b"pitm"][0] > 0
  (primary,) = struct.unpack_from(">I" if wide else ">H", found[b"pitm"], 4)
  items = _read_entries(found[b"iinf"])
  if primary not in items:
    raise ValueError("no picture in it")
  _read_places(items, found[b"iloc"])
  if b"iref" in found:
    _read_references(items, found[b"iref"])
  _read_properties(items, found[b"iprp"])
  inside = found.get(b"idat", memoryview(b""))
  return Heif(view, brand, primary, items, inside, movie)


def _read_entries(body: memoryview) -> dict[int, Item]:
  items: dict[int, Item] = {}
  at = 6 if body[0] == 0 else 8
  for kind, entry in boxes.walk(body, at):
    if kind != b"infe" or entry[0] < 2:
      continue
    wide = entry[0] > 2
    (number,) = struct.unpack_from(">I" if wide else ">H", entry, 4)
    at = 10 if wide else 8
    _, _, rest = bytes(entry[at + 4 :]).partition(b"\0")
    item = Item(kind=bytes(entry[at : at + 4]), words=rest)
    items.setdefault(number, item)
    if len(items) > _MOST_ITEMS:
      raise ValueError(f"more than {_MOST_ITEMS} items")
  return items


def _read_places(items: dict[int, Item], body: memoryview) -> None:
  version = body[0]
  if version > 2:
    raise ValueError(f"places of version {version}")
  sizes = body[4] >> 4, body[4] & 15, body[5] >> 4, body[5] & 15
  offset_size, length_size, base_size, index_size = sizes
  if set(sizes) - {0, 4, 8}:
    raise ValueError("places of odd numbers")
  at = 6

  def take(size: int) -> int:
    nonlocal at
    at += size
    if at > len(body):
      raise ValueError("places that are cut short")
    return int.from_bytes(body[at - size : at], "big")

  number_size = 2 if version < 2 else 4
  for _ in range(take(number_size)):
    number = take(number_size)
    method = take(2) & 15 if version else 0
    take(2)
    base = take(base_size)
    count = take(2)
    if count > _MOST_EXTENTS:
      raise ValueError(f"an item of {count} parts")
    for _ in range(count):
      if version:
        take(index_size)
      offset, length = take(offset_size), take(length_size)
      if number in items and method in (0, 1):
        extents = items[number].extents
        extents.append((method == 1, base + offset, length))


def _read_references(items: dict[int, Item], body: memoryview) -> None:
  form, size = (">H", 2) if body[0] == 0 else (">I", 4)
  total = 0
  for kind, entry in boxes.walk(body, 4):
    (source,) = struct.unpack_from(form, entry)
    (count,) = struct.unpack_from(">H", entry, size)
    limits.check_pieces(total := total + count, "references")
    targets = [
      struct.unpack_from(form, entry, size + 2 + size * i)[0]
      for i in range(count)
    ]
    if source in items:
      items[source].refers.append((kind, targets))


def _read_properties(items: dict[int, Item], body: memoryview) -> None:
  """Gives each item its properties."""
  found: list[tuple[bytes, bytes]] = []
  for kind, part in boxes.walk(body):
    if kind == b"ipco":
      found += [
        (k, bytes(b)) if len(b) <= limits.MAX_METADATA else (b"", b"")
        for k, b in boxes.walk(part)
      ]
  total = 0
  for kind, part in boxes.walk(body):
    if kind != b"ipma":
      continue
    form, size = (">H", 2) if part[0] == 0 else (">I", 4)
    wide = bool(part[3] & 1)
    (count,) = struct.unpack_from(">I", part, 4)
    at = 8
    for _ in range(count):
      (number,) = struct.unpack_from(form, part, at)
      entries = part[at + size]
      at += size + 1
      limits.check_pieces(total := total + entries + 1, "properties")
      for _ in range(entries):
        if wide:
          (value,) = struct.unpack_from(">H", part, at)
          index, essential = value & 0x7FFF, bool(value >> 15)
        else:
          index, essential = part[at] & 0x7F, bool(part[at] >> 7)
        at += 1 + wide
        if 0 < index <= len(found) and number in items:
          items[number].properties.append((*found[index - 1], essential))


def build(
  brand: bytes, brands: bytes, primary: int, items: list[tuple[Item, bytes]]
) -> bytes:
  """Makes a file of items.

  Args:
    brand: Of the file.
    brands: It is compatible with.
    primary: The number of the picture, from 1.
    items: Each with its bytes; they are numbered from 1.
  """
  entries, places, references, shared, associations = [], [], [], [], []
  for number, (item, _) in enumerate(items, 1):
    hidden = number != primary
    entries.append(
      boxes.pack(
        b"infe",
        struct.pack(">BxxBHH4sx", 2, hidden, number, 0, item.kind),
        item.words,
      )
    )
    references += [
      boxes.pack(kind, struct.pack(f">HH{len(to)}H", number, len(to), *to))
      for kind, to in item.refers
    ]
    indices = b""
    for kind, body, essential in item.properties:
      packed = boxes.pack(kind, body)
      if packed not in shared:
        shared.append(packed)
      index = shared.index(packed) + 1
      indices += struct.pack(">H", index | essential << 15)
    if indices:
      associations.append(
        struct.pack(">HB", number, len(indices) // 2) + indices
      )
  head = boxes.pack(b"ftyp", brand, bytes(4), brands)
  start = 0
  for _ in range(2):  # Where it begins depends on the length of what says so.
    at, places = start, []
    for number, (_, body) in enumerate(items, 1):
      places.append(struct.pack(">HHHQQ", number, 0, 1, at, len(body)))
      at += len(body)
    parts = [
      bytes(4),
      boxes.pack(b"hdlr", bytes(8), b"pict", bytes(13)),
      boxes.pack(b"pitm", bytes(4), struct.pack(">H", primary)),
      boxes.pack(
        b"iloc",
        bytes(4),
        struct.pack(">BBH", 0x88, 0, len(items)),
        *places,
      ),
      boxes.pack(b"iinf", bytes(4), struct.pack(">H", len(items)), *entries),
    ]
    if references:
      parts.append(boxes.pack(b"iref", bytes(4), *references))
    parts.append(
      boxes.pack(
        b"iprp",
        boxes.pack(b"ipco", *shared),
        boxes.pack(
          b"ipma",
          b"\0\0\0\1",
          struct.pack(">I", len(associations)),
          *associations,
        ),
      )
    )
    meta = boxes.pack(b"meta", *parts)
    data = b"".join(body for _, body in items)
    media = boxes.pack(b"mdat", data)
    start = len(head) + len(meta) + len(media) - len(data)
  return head + meta + media


def sequence_sizes(stream: bytes) -> Iterator[tuple[int, int]]:
  """Yields the largest size that each header of an AV1 stream allows."""
  at, count = 0, 0
  while at < len(stream):
    if (count := count + 1) > _MOST_UNITS:
      raise ValueError(f"more than {_MOST_UNITS} units")
    first = stream[at]
    at += 2 if first & 4 else 1
    length, shift = len(stream) - at, 0
    if first & 2:
      length = 0
      while True:
        byte = stream[at]
        length |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
          break
        if shift > 56:
          raise ValueError("a unit of no length")
    if at + length > len(stream):
      raise ValueError("a unit beyond the end")
    if first >> 3 & 15 == 1:
      yield _sequence_size(stream[at : at + length])
    at += length


def _sequence_size(header: bytes) -> tuple[int, int]:
  """Reads an AV1 sequence header as far as its size."""
  bits = Bits(header)
  bits.take(4)
  if bits.flag():  # Reduced, for one picture.
    bits.take(5)
  else:
    delay, has_model = 0, False
    if bits.flag():
      bits.take(64)
      if bits.flag():
        zeros = 0
        while not bits.flag():
          if (zeros := zeros + 1) > 32:
            raise ValueError("a number of no end")
        bits.take(zeros)
      if has_model := bits.flag():
        delay = bits.take(5) + 1
        bits.take(42)
    shown = bits.flag()
    for _ in range(bits.take(5) + 1):
      bits.take(12)
      if bits.take(5) > 7:
        bits.take(1)
      if has_model and bits.flag():
        bits.take(2 * delay + 1)
      if shown and bits.flag():
        bits.take(4)
  across, down = bits.take(4) + 1, bits.take(4) + 1
  return bits.take(across) + 1, bits.take(down) + 1
