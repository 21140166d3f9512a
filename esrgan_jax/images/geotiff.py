"""GeoTIFF's tags: where a picture lies on the map, at another size.

The raster's coordinates are those of OGC 19-008r4: (0, 0) is the corner of the
first pixel (PixelIsArea) or its centre (PixelIsPoint). A picture of twice the
size has the same outline, so its first pixel's centre is elsewhere.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from esrgan_jax.images.directories import Value

# Values of a tag; bytes are text.
Tags: TypeAlias = Mapping[int, tuple[float, ...] | bytes]

_PIXEL_SCALE, _TIEPOINTS, _TRANSFORMATION = 33550, 33922, 34264
_KEYS, _DOUBLES, _TEXTS = 34735, 34736, 34737
_GDAL, NO_DATA, _RATIONAL_POLYNOMIALS = 42112, 42113, 50844
# Kind of each tag's values: 2 text, 3 short, 12 double.
KINDS = {_PIXEL_SCALE: 12, _TIEPOINTS: 12, _TRANSFORMATION: 12, _KEYS: 3}
KINDS |= {_DOUBLES: 12, _TEXTS: 2, _GDAL: 2, NO_DATA: 2}
KINDS |= {_RATIONAL_POLYNOMIALS: 12}
_COUNTS = {_PIXEL_SCALE: 3, _TRANSFORMATION: 16, _RATIONAL_POLYNOMIALS: 92}
_RASTER_TYPE, _IS_POINT = 1025, 2
_STATISTICS = re.compile(rb'<Item name="STATISTICS_[^<>]*>[^<>]*</Item>\s*')


def read(values: Mapping[int, Value], order: str) -> Tags | None:
  """Returns the tags that are there; None if any is damaged."""
  tags: dict[int, tuple[float, ...] | bytes] = {}
  for tag, (kind, raw) in values.items():
    if kind != KINDS[tag]:
      return None
    if kind == 2:
      tags[tag] = raw
      continue
    form, size = ("d", 8) if kind == 12 else ("H", 2)
    numbers = struct.unpack(f"{order}{len(raw) // size}{form}", raw)
    if tag in _COUNTS and len(numbers) != _COUNTS[tag]:
      return None
    if not all(map(math.isfinite, numbers)):
      return None
    tags[tag] = numbers
  if len(tags.get(_TIEPOINTS, ())) % 6 or len(tags.get(_KEYS, ())) % 4:
    return None
  return tags


def is_point(tags: Tags) -> bool:
  """Tells whether the raster's coordinates are those of pixels' centres."""
  keys = tags.get(_KEYS, ())
  # Key, where its value lies, count, value; after a header of four.
  return any(
    tuple(keys[at : at + 2]) == (_RASTER_TYPE, 0) and keys[at + 3] == _IS_POINT
    for at in range(4, len(keys), 4)
  )


def fit(tags: Tags, size: tuple[int, int], new_size: tuple[int, int]) -> Tags:
  """Returns the tags for a picture of another size, of the same place.

  Args:
    tags: As `read` gives them.
    size: Width and height of the picture that they tell of.
    new_size: Those of the picture that they are for.

  >>> fit({33550: (10.0, 10.0, 0.0)}, (24, 16), (48, 32))
  {33550: (5.0, 5.0, 0.0)}
  """
  ratios = [new / old for new, old in zip(new_size, size, strict=True)]
  if ratios == [1, 1]:
    return tags
  # Of the new raster's 0 on the old one, in new pixels.
  shift = 0.5 if is_point(tags) else 0.0
  fitted = dict(tags)
  if _PIXEL_SCALE in tags:
    x, y, z = tags[_PIXEL_SCALE]
    fitted[_PIXEL_SCALE] = x / ratios[0], y / ratios[1], z
  points: list[float] = []
  for at in range(0, len(tags.get(_TIEPOINTS, ())), 6):
    column, row, *rest = tags[_TIEPOINTS][at : at + 6]
    points += [
      (column + shift) * ratios[0] - shift,
      (row + shift) * ratios[1] - shift,
      *rest,
    ]
  if points:
    fitted[_TIEPOINTS] = tuple(points)
  if _TRANSFORMATION in tags:
    fitted[_TRANSFORMATION] = _transformation(
      tags[_TRANSFORMATION], ratios, shift
    )
  if _RATIONAL_POLYNOMIALS in tags:
    # Offsets and scales of row and column; pixels are their centres.
    numbers = list(tags[_RATIONAL_POLYNOMIALS])
    for place, ratio in ((2, ratios[1]), (3, ratios[0])):
      numbers[place] = (numbers[place] + 0.5) * ratio - 0.5
    for place, ratio in ((7, ratios[1]), (8, ratios[0])):
      numbers[place] *= ratio
    fitted[_RATIONAL_POLYNOMIALS] = tuple(numbers)
  if _GDAL in tags:
    fitted[_GDAL] = _STATISTICS.sub(b"", tags[_GDAL])
  return fitted


def _transformation(
  matrix: Sequence[float], ratios: Sequence[float], shift: float
) -> tuple[float, ...]:
  """Returns a matrix [4, 4] of the new raster's columns and rows."""
  fitted = list(matrix)
  for row in range(0, 16, 4):
    for column, ratio in enumerate(ratios):
      step = matrix[row + column] / ratio
      fitted[row + column] = step
      fitted[row + 3] += step * shift - matrix[row + column] * shift
  return tuple(fitted)
