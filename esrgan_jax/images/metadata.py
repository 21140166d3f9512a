"""ICC profiles, EXIF and resolution: checked, and fit for the pixels."""

from __future__ import annotations

import fractions
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from esrgan_jax.images import directories
from esrgan_jax.images.directories import EXIF, INTEROP, Layout, Tree, Value
from esrgan_jax.images.limits import MAX_METADATA

SPACE_OF_CHANNELS = {1: b"GRAY", 3: b"RGB "}
_ORIENTATION, _WIDTH, _HEIGHT = 274, 256, 257
_UNIT, _RESOLUTION = 296, (282, 283)
_GAMMA = 42240
_SEEN = 40962, 40963
# Of the directory that serves interoperability.
_RELATED = 4097, 4098
# In pixels: where the subject is, and how many an inch of the sensor has.
_SUBJECTS, _FOCAL_PLANE = (37396, 41492), (41486, 41487)
# A claim of Xiaomi's phones, that a video lies behind the picture.
_VIDEO_BEHIND = 34967
_SOFTWARE, _HISTORY, _COMMENT = 305, 37395, 37510
# Keyword of a PNG's text -> tag of the same meaning.
_TEXTS = {"Description": 270, "Software": _SOFTWARE, "Author": 315}
_TEXTS |= {"Copyright": 33432}
# What takes the place of a user's comment, the first of them: where generators
# of images keep their settings, and where other programs look for them.
_COMMENTS = ("parameters", "Comment")
# All keywords that have a place in EXIF.
TEXTS = {*_TEXTS, *_COMMENTS}
# Of a TIFF's own directory, what EXIF has there too: words about the picture.
ASCII_WORDS = {269, 270, 271, 272, 305, 306, 315, 316, 33432}
WORDS = {18246, 18249, *range(40091, 40096), *ASCII_WORDS}
# What says how the file was made and its pixels lie, and nothing of a picture
# elsewhere: sizes, resolution, the program, EXIF's version.
_OF_FILE = {_ORIENTATION, _WIDTH, _HEIGHT, _UNIT, *_RESOLUTION, _SOFTWARE, 531}
_OF_BLOCK = {36864, 37121, 40960, 40961, *_SEEN}
# Where another file's pixels, thumbnails and further directories lay.
_MAKER_NOTE = 37500
_POINTERS = {273, 279, 288, 289, 324, 325, 330, 513, 514}


class Exif(NamedTuple):
  """An EXIF block's tags.

  Attributes:
    tree: The values.
    order: Their byte order.
    damaged: Whether there was a block that could not be read.
  """

  tree: Tree
  order: str
  damaged: bool = False


def profile_space(profile: Any) -> bytes | None:
  """Returns an ICC profile's colour space, or None if it is not a profile."""
  if not isinstance(profile, bytes) or len(profile) < 132:
    return None
  size = int.from_bytes(profile[:4], "big")
  if profile[36:40] != b"acsp" or not 132 <= size <= len(profile):
    return None
  return profile[16:20]


def tidy_dpi(dpi: Sequence[float | None] | None) -> tuple[float, float] | None:
  """Returns a resolution if it is a sound one."""
  if dpi is None or None in dpi:
    return None
  x, y = (float(v) for v in dpi)
  return (x, y) if 1 <= x <= 65_535 and 1 <= y <= 65_535 else None


def load_exif(block: bytes | None) -> Exif:
  """Reads an EXIF block; gives no tags if it is damaged, or not one."""
  if not block:
    return Exif({}, "<")
  if len(block) <= MAX_METADATA:
    block = block.removeprefix(b"Exif\0\0")
    try:
      layout, offset = directories.layout_of(block)
      tree = directories.read_tree(block, offset, layout, most=len(block))
      return Exif(tree, layout.order)
    except (ValueError, struct.error):
      pass
  return Exif({}, "<", damaged=True)


def bigtiff_order(exif: Exif) -> str:
  """Returns the byte order of a BigTIFF with these tags: little-endian.

  Pillow reads no other. With makers' notes, whose order is not ours to change,
  it is that of the tags.
  """
  has_notes = _MAKER_NOTE in exif.tree.get(EXIF, {})
  return exif.order if has_notes else "<"


def says_something(exif: Exif) -> bool:
  """Tells whether there is more than how the file was made."""
  below = exif.tree.get(EXIF, {})
  return bool(exif.tree.keys() - _OF_FILE - {EXIF}) or bool(
    isinstance(below, dict) and below.keys() - _OF_BLOCK - {INTEROP}
  )


def orientation_of(exif: Exif) -> int:
  """Returns the orientation, 1 to 8; 1 where there is none."""
  turn = directories.integers(exif.tree.get(_ORIENTATION), exif.order)
  return turn[0] if turn and turn[0] in range(1, 9) else 1


def dpi_of(exif: Exif) -> tuple[float, float] | None:
  """Returns the pixels an inch that EXIF states, if it does."""
  tree, order, _ = exif
  unit = directories.integers(tree.get(_UNIT), order)[:1] or (2,)
  factor = {2: 1, 3: 2.54}.get(unit[0])
  if factor is None:
    return None
  dpi = (directories.rational(tree.get(t), order) for t in _RESOLUTION)
  return tidy_dpi([None if v is None else factor * v for v in dpi])


def gamma_of(exif: Exif) -> float | None:
  """Returns the exponent of the pixels' curve, if EXIF states it."""
  below = exif.tree.get(EXIF)
  value = below.get(_GAMMA) if isinstance(below, dict) else None
  return directories.rational(value, exif.order)


def tidy_exif(
  exif: Exif,
  size: tuple[int, int],
  new_size: tuple[int, int],
  *,
  orientation: int = 1,
) -> Exif:
  """Returns the tags for an upright picture of another size.

  Args:
    exif: As they were.
    size: Width and height of the picture that they tell of, upright.
    new_size: Those of the picture that they are for.
    orientation: How they say that the picture lies; they won't any more.
  """
  tree, order, _ = exif
  tree = {t: v for t, v in tree.items() if t not in _POINTERS}
  below = dict(tree.get(EXIF, {}))
  related = dict(below.get(INTEROP, {}))
  below.pop(_VIDEO_BEHIND, None)
  if _ORIENTATION in tree:
    tree[_ORIENTATION] = directories.short(1, order)
  for where, tags in (
    (tree, (_WIDTH, _HEIGHT)),
    (below, _SEEN),
    (related, _RELATED),
  ):
    for tag, side in zip(tags, new_size, strict=True):
      if tag in where:
        where[tag] = directories.long(side, order)
  if orientation >= 5:
    for where, (x, y) in ((tree, _RESOLUTION), (below, _FOCAL_PLANE)):
      if x in where and y in where:
        where[x], where[y] = where[y], where[x]
  ratios = [
    fractions.Fraction(new, old)
    for new, old in zip(new_size, size, strict=True)
  ]
  if orientation != 1 or ratios != [1, 1]:
    for tag in _SUBJECTS:
      place = directories.integers(below.pop(tag, None), order)
      if 2 <= len(place) <= 4:
        below[tag] = _moved(place, size, ratios, orientation, order)
  for tag, ratio in zip(_FOCAL_PLANE, ratios, strict=True):
    pixels = directories.rational(below.get(tag), order)
    if ratio != 1 and pixels is not None:
      below[tag] = make_rational(pixels * ratio, order)
  for where, tag, inner in ((below, INTEROP, related), (tree, EXIF, below)):
    if tag in where:
      where[tag] = inner
  return Exif(tree, order)


def _moved(
  place: tuple[int, ...],
  size: tuple[int, int],
  ratios: list[fractions.Fraction],
  orientation: int,
  order: str,
) -> Value:
  """Returns a point, circle or rectangle where it lies in the result."""
  x, y, *sides = place
  width, height = size
  if orientation >= 5:
    x, y, sides = y, x, sides[::-1]
  if orientation in (3, 4, 7, 8):
    y = height - 1 - y
  if orientation in (2, 3, 6, 7):
    x = width - 1 - x
  half = fractions.Fraction(1, 2)
  moved = [(v + half) * r - half for v, r in zip((x, y), ratios, strict=True)]
  moved += [v * r for v, r in zip(sides, ratios, strict=False)]
  numbers = [min(max(round(v), 0), 2**32 - 1) for v in moved]
  form, kind = ("H", 3) if max(numbers) < 2**16 else ("I", 4)
  return Value(kind, struct.pack(f"{order}{len(numbers)}{form}", *numbers))


def make_rational(value: fractions.Fraction, order: str) -> Value:
  """Makes a value of a number, as near as it can be."""
  value = min(max(value, fractions.Fraction(0)), fractions.Fraction(2**32 - 1))
  below = 2**32 - 1 if value < 1 else int((2**32 - 1) // value)
  value = value.limit_denominator(max(below, 1))
  numbers = value.numerator, value.denominator
  return Value(5, struct.pack(order + "II", *numbers))


def pack_exif(exif: Exif) -> bytes | None:
  """Returns the block of tags; None if there are none."""
  # Empty directories say nothing, and some readers refuse them.
  tree = {t: v for t, v in exif.tree.items() if v != {}}
  if not tree:
    return None
  # In its own byte order, on which makers' notes may count.
  big = exif.order == ">"
  head = b"MM\0*\0\0\0\x08" if big else b"II*\0\x08\0\0\0"
  return head + directories.pack_tree(tree, 8, Layout(exif.order))


def with_texts(exif: Exif, texts: Mapping[str, str]) -> tuple[Exif, set[str]]:
  """Adds a PNG's texts where there is no such tag yet.

  Args:
    exif: The tags.
    texts: Text by its keyword.

  Returns:
    The tags, and the keywords of those that are among them now.
  """
  if not exif.tree:
    # Most programs that read such comments take them for big-endian.
    exif = Exif({}, ">")
  tree, below = dict(exif.tree), dict(exif.tree.get(EXIF, {}))
  used = set()
  for word, tag in _TEXTS.items():
    if word in texts and tag not in tree:
      tree[tag] = _ascii(texts[word])
      used.add(word)
  comments = [word for word in _COMMENTS if word in texts]
  if comments and _COMMENT not in below:
    text = texts[comments[0]]
    if text.isascii():
      raw = b"ASCII\0\0\0" + text.encode()
    else:
      encoding = "utf-16-be" if exif.order == ">" else "utf-16-le"
      raw = b"UNICODE\0" + text.encode(encoding, "replace")
    below[_COMMENT] = Value(7, raw)
    used.add(comments[0])
  if below:
    tree[EXIF] = below
  return exif._replace(tree=tree), used


def with_record(exif: Exif, record: str) -> Exif:
  """Adds how the picture was made: as its software, or to its history."""
  tree, below = dict(exif.tree), dict(exif.tree.get(EXIF, {}))
  if _SOFTWARE not in tree:
    tree[_SOFTWARE] = _ascii(record)
    return exif._replace(tree=tree)
  # That of the camera stays.
  before = below.get(_HISTORY)
  if before is not None and before.kind == 2:
    text = before.raw.rstrip(b"\0 ").decode("utf-8", "replace")
    record = f"{text}; {record}" if text else record
  below[_HISTORY] = _ascii(record)
  return exif._replace(tree={**tree, EXIF: below})


def _ascii(text: str) -> Value:
  """Makes a value of a text; in UTF-8, as most programs do."""
  return Value(2, text.encode("utf-8", "replace").replace(b"\0", b" ") + b"\0")
