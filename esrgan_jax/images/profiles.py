"""ICC profiles: of linear light, for a display's values, of stated colours.

Of a profile that is given, only the curves are looked at and exchanged;
primaries and words are left.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing

# What the connection space has for white; and how eyes adapt to it (Bradford).
_D50 = (0.9642, 1.0, 0.8249)
_CONES = ((0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367))
_CONES += ((0.0389, -0.0685, 1.0296),)
_CURVES = (b"rTRC", b"gTRC", b"bTRC", b"kTRC")
_MOST_TAGS = 200
_LINEAR = b"curv" + bytes(8)
# sRGB's, a parametric curve of kind 3: gamma, a, b, c, d by 2^16.
_SRGB = b"para" + struct.pack(
  ">IHH5i",
  0,
  3,
  0,
  *(
    round(v * 2**16)
    for v in (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
  ),
)
# Its white, red, green and blue.
_SRGB_PLACES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
# What stands for 1 in a curve of one number, and in a parametric one.
_IDENTITIES = (
  _LINEAR,
  b"curv" + struct.pack(">IIH", 0, 1, 256),
  b"para" + struct.pack(">IHHi", 0, 0, 0, 2**16),
  b"curv" + struct.pack(">IIHH", 0, 2, 0, 65_535),
)


def _tags(profile: bytes) -> Iterator[tuple[bytes, bytes]]:
  (count,) = struct.unpack_from(">I", profile, 128)
  if count > _MOST_TAGS:
    raise ValueError(f"{count} tags")
  for number in range(count):
    name, at, size = struct.unpack_from(">4sII", profile, 132 + 12 * number)
    if at < 132 or at + size > len(profile):
      raise ValueError("a tag beyond the end")
    yield name, profile[at : at + size]


def is_linear(profile: bytes | None) -> bool:
  """Tells whether a profile's curves are all the identity.

  Args:
    profile: An ICC profile, or something else.

  >>> is_linear(linear_srgb()), is_linear(None)
  (True, False)
  """
  try:
    tags = dict(_tags(profile or b""))
  except (ValueError, struct.error):
    return False
  # One of a table (A2B) has its curves there.
  curves = [tags[name] for name in _CURVES if name in tags]
  return bool(curves) and all(
    any(curve.startswith(known) for known in _IDENTITIES) for curve in curves
  )


def is_srgb(profile: bytes | None) -> bool:
  """Tells a profile of sRGB's primaries, or grey, with sRGB's own curve.

  So is what `with_curves` makes of `linear_srgb`; the tables that others have
  for the curve are not looked at.

  >>> is_srgb(with_curves(linear_srgb(), linear=False)), is_srgb(linear_srgb())
  (True, False)
  """
  try:
    tags = dict(_tags(profile or b""))
  except (ValueError, struct.error):
    return False
  curves = [tags[name] for name in _CURVES if name in tags]
  if not curves or any(not curve.startswith(_SRGB) for curve in curves):
    return False
  if b"kTRC" in tags:
    return b"A2B0" not in tags
  places = primaries_of(profile)
  return places is not None and np.allclose(places, _SRGB_PLACES, atol=0.002)


def with_curves(profile: bytes, *, linear: bool) -> bytes | None:
  """Exchanges a profile's curves for the identity, or sRGB's.

  Args:
    profile: An ICC profile of a matrix or of grey.
    linear: Which.

  Returns:
    The profile, or None if it has no curves to exchange.
  """
  try:
    tags = list(_tags(profile))
  except (ValueError, struct.error):
    return None
  if not any(name in _CURVES for name, _ in tags) or b"A2B0" in dict(tags):
    return None
  curve = _LINEAR if linear else _SRGB
  tags = [(name, curve if name in _CURVES else value) for name, value in tags]
  return _packed(profile[:128], tags)


def _packed(head: bytes, tags: list[tuple[bytes, bytes]]) -> bytes:
  """Makes a profile of other tags, with another's header."""
  table, body, places = b"", b"", {}
  for name, value in tags:
    if value not in places:
      places[value] = 132 + 12 * len(tags) + len(body)
      body += value + bytes(-len(value) % 4)
    table += struct.pack(">4sII", name, places[value], len(value))
  # The checksum of what it was is taken out.
  head = head[4:84] + bytes(16) + head[100:128]
  rest = head + struct.pack(">I", len(tags)) + table + body
  return struct.pack(">I", len(rest) + 4) + rest


@functools.cache
def linear_srgb(channels: int = 3) -> bytes:
  """Returns a profile of linear light: of sRGB's primaries, or of its white.

  Args:
    channels: 3 for RGB, 1 for grey.
  """
  from PIL import ImageCms  # Seldom needed.

  srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
  if channels == 3:
    return with_curves(srgb, linear=True)
  kept = (b"desc", b"cprt", b"wtpt", b"chad")
  tags = [(name, value) for name, value in _tags(srgb) if name in kept]
  head = srgb[:16] + b"GRAY" + srgb[20:128]
  return _packed(head, [*tags, (b"kTRC", _LINEAR)])


def of_primaries(
  places: Sequence[float], gamma: float | None, *, channels: int
) -> bytes | None:
  """Makes a profile of what a file states of its colours.

  Args:
    places: x and y of white, red, green and blue.
    gamma: Exponent from the values to light; None: sRGB's curve.
    channels: 3 for RGB, 1 for grey.

  Returns:
    The profile; None if those are no colours.

  >>> places = (0.3127, 0.329, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046)
  >>> is_linear(of_primaries(places, 1.0, channels=3))
  True
  """
  points = np.array(places, np.float64).reshape(4, 2)
  if gamma is not None and not 1 / 16 <= gamma <= 16:
    return None
  if not ((points[:, 1] > 0.001) & (np.abs(points) <= 2).all(axis=1)).all():
    return None
  x, y = points.T
  white, *colours = np.stack([x / y, np.ones(4), (1 - x - y) / y], axis=1)
  colours = np.transpose(colours)
  cones = np.array(_CONES)
  if min(cones @ white) < 0.01 or abs(np.linalg.det(colours)) < 1e-6:
    return None
  adapt = np.linalg.inv(cones) @ np.diag(cones @ _D50 / (cones @ white)) @ cones
  colours = adapt @ (colours * np.linalg.solve(colours, white))
  if np.abs(colours).max() > 100:
    return None
  curve = _SRGB
  if gamma == 1:
    curve = _LINEAR
  elif gamma is not None:
    curve = b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256))
  base = linear_srgb(channels)
  words = "of primaries that a file states".encode("utf-16-be")
  # One record of 12 bytes, its words behind it.
  words = struct.pack(">II4sII", 1, 12, b"enUS", len(words), 28) + words
  tags = [(b"desc", b"mluc" + bytes(4) + words)]
  tags += [(name, value) for name, value in _tags(base) if name == b"cprt"]
  tags += [(b"wtpt", _xyz(b"XYZ ", _D50)), (b"chad", _xyz(b"sf32", adapt))]
  if channels == 1:
    return _packed(base[:128], [*tags, (b"kTRC", curve)])
  for letter, colour in zip((b"r", b"g", b"b"), colours.T, strict=True):
    tags.append((letter + b"XYZ", _xyz(b"XYZ ", colour)))
    tags.append((letter + b"TRC", curve))
  return _packed(base[:128], tags)


def primaries_of(profile: bytes) -> tuple[float, ...] | None:
  """Returns x and y of a profile's white, red, green and blue.

  Args:
    profile: An ICC profile.

  Returns:
    Eight numbers; None if it is not one of a matrix.

  >>> places = (0.3127, 0.329, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046)
  >>> found = primaries_of(of_primaries(places, None, channels=3))
  >>> [round(v, 3) for v in found]
  [0.313, 0.329, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046]
  """
  try:
    tags = dict(_tags(profile))
    points = [_numbers(tags[name], 3) for name in (b"rXYZ", b"gXYZ", b"bXYZ")]
    # Without a word on how they were adapted, white was D50.
    adapted = np.eye(3)
    if b"chad" in tags:
      adapted = _numbers(tags[b"chad"], 9).reshape(3, 3)
    back = np.linalg.inv(adapted)
  except (KeyError, ValueError, struct.error, np.linalg.LinAlgError):
    return None
  if b"A2B0" in tags:
    return None
  points = [back @ point for point in (np.array(_D50), *points)]
  if any(sum(point) <= 0.001 for point in points):
    return None
  return tuple(float(v) for p in points for v in p[:2] / sum(p))


def _numbers(tag: bytes, count: int) -> np.ndarray:
  """Reads a tag of numbers by 2^16."""
  return np.frombuffer(tag, ">i4", count, 8) / 2**16


def _xyz(kind: bytes, numbers: np.typing.ArrayLike) -> bytes:
  """Makes a tag of numbers by 2^16."""
  fixed = np.rint(np.ravel(numbers) * 2**16).astype(">i4")
  return kind + bytes(4) + fixed.tobytes()
