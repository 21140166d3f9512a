"""ICC profiles, EXIF, XMP and resolution: checked, and fit for the pixels.

EXIF is Pillow's business. Between its parser and its writer stands a tree of
plain values: tag -> value, or -> the tree of a sub-directory.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Collection, Mapping
from typing import Any

from PIL import Image as PilImage
from PIL import TiffTags
from PIL.TiffImagePlugin import ImageFileDirectory_v2

EXIF_IFD, GPS_IFD, INTEROP_IFD = 34665, 34853, 40965
SPACE_OF_CHANNELS = {1: b"GRAY", 3: b"RGB "}
_ORIENTATION = 274

_Tree = dict[int, Any]


def profile_space(profile: Any) -> bytes | None:
  """Returns an ICC profile's colour space, or None if it is not a profile."""
  if not isinstance(profile, bytes) or len(profile) < 132:
    return None
  size = int.from_bytes(profile[:4], "big")
  if profile[36:40] != b"acsp" or not 132 <= size <= len(profile):
    return None
  return profile[16:20]


def tidy_dpi(dpi: Any) -> tuple[float, float] | None:
  """Returns a resolution if it is a sound one."""
  try:
    x, y = (float(v) for v in dpi)
  except (TypeError, ValueError, ZeroDivisionError):
    return None
  return (x, y) if 1 <= x <= 65_535 and 1 <= y <= 65_535 else None


def tidy_xmp(xmp: Any) -> bytes | None:
  """Returns an XMP packet with its orientation reset."""
  if isinstance(xmp, str):
    xmp = xmp.encode()
  if not isinstance(xmp, bytes) or not xmp:
    return None
  return re.sub(rb"(tiff:Orientation(?:\s*=\s*[\"']|>))[2-8]", rb"\g<1>1", xmp)


def load_exif(block: Any) -> PilImage.Exif:
  """Parses an EXIF block; gives an empty mapping if that is impossible."""
  exif = PilImage.Exif()
  with contextlib.suppress(Exception), _unwarned():
    exif.load(block)
    return exif
  return PilImage.Exif()


def load_tiff_exif(
  data: bytes, offset: int, *, order: str, big: bool
) -> PilImage.Exif:
  """Parses a TIFF file's directory in the same manner."""
  exif = PilImage.Exif()
  exif.endian, exif.bigtiff = order, big
  with contextlib.suppress(Exception), _unwarned():
    exif.load_from_fp(io.BytesIO(data), offset)
    return exif
  return PilImage.Exif()


def orientation_of(exif: PilImage.Exif) -> int:
  """Returns the orientation, 1 to 8; 1 where there is none."""
  with contextlib.suppress(Exception), _unwarned():
    value = exif.get(_ORIENTATION)
    return int(value) if value in range(1, 9) else 1
  return 1


def exif_tree(exif: PilImage.Exif) -> _Tree:
  """Returns all that can be read and written again, thumbnails apart."""
  with _unwarned():
    tree = _sound(exif)
    for group in (EXIF_IFD, GPS_IFD):
      tree.pop(group, None)
      with contextlib.suppress(Exception):
        below = _sound(exif.get_ifd(group), group)
        if below.pop(INTEROP_IFD, None) is not None:
          below[INTEROP_IFD] = _sound(exif.get_ifd(INTEROP_IFD), INTEROP_IFD)
        if below:
          tree[group] = below
  return tree


def tidy_exif(
  exif: PilImage.Exif,
  width: int,
  height: int,
  *,
  only: Collection[int] | None = None,
) -> bytes | None:
  """Returns the block for an upright picture of this size; None if empty."""
  tree = exif_tree(exif)
  if only is not None:
    tree = {tag: value for tag, value in tree.items() if tag in only}
  below = tree.get(EXIF_IFD, {})
  for where, tag, value in (
    (tree, _ORIENTATION, 1),
    (tree, 256, width),
    (tree, 257, height),
    (below, 40962, width),
    (below, 40963, height),
  ):
    if tag in where:
      where[tag] = value
  # In its own byte order, on which makers' notes may count.
  if exif.endian == ">":
    head, order = b"MM\0*\0\0\0\x08", ">"
  else:
    head, order = b"II*\0\x08\0\0\0", "<"
  return head + pack_directory(tree, 8, order=order) if tree else None


def pack_directory(
  tree: _Tree,
  offset: int,
  *,
  order: str = "<",
  big: bool = False,
  group: int | None = None,
) -> bytes:
  """Returns a tree as a TIFF directory, sub-directories after it."""
  mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
  head = b"II+\0\x08\0\0\0" + bytes(8) if big else mark + bytes(4)
  directory = ImageFileDirectory_v2(head, group=group)
  with _unwarned():
    for tag, value in tree.items():
      directory[tag] = value
    return directory.tobytes(offset)


def _sound(source: Mapping[int, Any], group: int | None = None) -> _Tree:
  """Returns the tags whose values can be decoded, and encoded again."""
  tree = {}
  for tag in source:
    with contextlib.suppress(Exception):
      value = source[tag]
      if isinstance(value, str) and (
        TiffTags.lookup(tag, group).type == TiffTags.ASCII
      ):
        # As it stood in the file: Pillow would turn letters beyond ASCII,
        # which it decodes by Latin-1, into question marks.
        value = value.encode("latin-1")
      pack_directory({tag: value}, 0, group=group)
      tree[tag] = value
  return tree


@contextlib.contextmanager
def _unwarned():
  """Silences Pillow's warnings of damaged metadata: they are left out."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    yield
