"""ICC profiles, EXIF, XMP and resolution: checked, and fit for the pixels."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from esrgan_jax.images import directories
from esrgan_jax.images.directories import EXIF, Layout, Tree
from esrgan_jax.images.limits import MAX_METADATA

SPACE_OF_CHANNELS = {1: b"GRAY", 3: b"RGB "}
_ORIENTATION, _WIDTH, _HEIGHT = 274, 256, 257
_UNIT, _RESOLUTION = 296, (282, 283)
_GAMMA = 42240
_SEEN_WIDTH, _SEEN_HEIGHT = 40962, 40963
# Of a TIFF's own directory, what EXIF has there too: words about the picture.
ASCII_WORDS = {269, 270, 271, 272, 305, 306, 315, 316, 33432}
WORDS = {18246, 18249, *range(40091, 40096), *ASCII_WORDS}
# Where another file's pixels, thumbnails and further directories lay.
_POINTERS = {273, 279, 288, 289, 324, 325, 330, 513, 514}


class Exif(NamedTuple):
  """An EXIF block's tags; values are in the byte order `order`."""

  tree: Tree
  order: str


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


def tidy_xmp(xmp: Any) -> bytes | None:
  """Returns an XMP packet with its orientation reset."""
  if not isinstance(xmp, bytes) or not 0 < len(xmp) <= MAX_METADATA:
    return None
  return re.sub(rb"(tiff:Orientation(?:\s*=\s*[\"']|>))[2-8]", rb"\g<1>1", xmp)


def load_exif(block: bytes | None) -> Exif:
  """Reads an EXIF block; gives no tags if it is damaged, or not one."""
  if block is not None and len(block) <= MAX_METADATA:
    block = block.removeprefix(b"Exif\0\0")
    try:
      layout, offset = directories.layout_of(block)
      tree = directories.read_tree(block, offset, layout, most=len(block))
      return Exif(tree, layout.order)
    except (ValueError, struct.error):
      pass
  return Exif({}, "<")


def orientation_of(exif: Exif) -> int:
  """Returns the orientation, 1 to 8; 1 where there is none."""
  turn = directories.integers(exif.tree.get(_ORIENTATION), exif.order)
  return turn[0] if turn and turn[0] in range(1, 9) else 1


def dpi_of(exif: Exif) -> tuple[float, float] | None:
  """Returns the pixels an inch that EXIF states, if it does."""
  tree, order = exif
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


def tidy_exif(exif: Exif, width: int, height: int) -> bytes | None:
  """Returns the block for an upright picture of this size; None if empty."""
  tree, order = dict(exif.tree), exif.order
  below = dict(tree.get(EXIF, {}))
  for where, tag, value in (
    (tree, _ORIENTATION, directories.short(1, order)),
    (tree, _WIDTH, directories.long(width, order)),
    (tree, _HEIGHT, directories.long(height, order)),
    (below, _SEEN_WIDTH, directories.long(width, order)),
    (below, _SEEN_HEIGHT, directories.long(height, order)),
  ):
    if tag in where:
      where[tag] = value
  if EXIF in tree:
    tree[EXIF] = below
  # Empty directories say nothing, and some readers refuse them.
  tree = {t: v for t, v in tree.items() if t not in _POINTERS and v != {}}
  if not tree:
    return None
  # In its own byte order, on which makers' notes may count.
  head = b"MM\0*\0\0\0\x08" if order == ">" else b"II*\0\x08\0\0\0"
  return head + directories.pack_tree(tree, 8, Layout(order))
