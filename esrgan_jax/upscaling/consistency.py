"""Makes results agree with their images: downscaled, they are those again.

A network may drift: in colour, in brightness, in what it makes of fine lines.
Of all pictures whose downscaling is the image, the one nearest to the network's
result is found here: with D for downscaling, a linear map, x + D'(DD')^-1(y -
Dx) for the result x of the image y. Where that leaves the range of pixels it is
clipped, and again projected, a few times: back-projection (Irani and Peleg,
"Improving Resolution by Image Registration", 1991), whose step is exact.

D is MATLAB's bicubic `imresize`, antialiased: what made the LR images of the
field. It runs along rows and columns one after the other, and so does all of
this, block by block: what a pixel becomes depends on few others.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np

from esrgan_jax import resize

__all__ = ["UNSEEN", "Agreement", "check_size", "levels", "make_consistent"]

# Levels: what is less is gone once it is rounded.
UNSEEN = 0.5

# Most blocks take two or three.
_MAX_STEPS = 40
# Side of what is done at a time, in pixels of the result.
_BLOCK = 1024
# How far that looks beyond what it keeps, in pixels of the image. A step fades
# by some three from pixel to pixel.
_CONTEXT = 16
# Added to DD', of its diagonal: factors just above 1 sample between pixels
# here and there, and leave the finest lines open.
_DAMPING = 1e-3
# A level of floats, which have none.
_FLOAT_LEVELS = 65535


@dataclasses.dataclass(frozen=True)
class Agreement:
  """How far a result is from its image.

  Attributes:
    before: The largest difference of a pixel of the image and of the
      downscaled result, in levels of its dtype (of 65535, for floats), as the
      network gave it.
    after: The same, once it was made consistent.
  """

  before: float
  after: float


def check_size(size: tuple[int, ...], image: tuple[int, ...]) -> None:
  """Raises if a result is too small to be consistent with its image.

  Args:
    size: Of the result, height and width first.
    image: Likewise, of its image.

  >>> check_size((5, 9), (5, 10))
  Traceback (most recent call last):
  ...
  ValueError: a result of 9 x 5 pixels cannot be consistent with its image,...
  """
  (H, W), (h, w) = size[:2], image[:2]
  if h > H or w > W:
    raise ValueError(
      f"a result of {W} x {H} pixels cannot be consistent with its image,"
      f" {w} x {h}, of which it is smaller: ask for a larger one, or do without"
    )


def levels(dtype: np.dtype) -> int:
  """Returns how many levels differences are counted in.

  >>> levels(np.dtype(np.uint8)), levels(np.dtype(np.float32))
  (255, 65535)
  """
  return _FLOAT_LEVELS if dtype.kind == "f" else np.iinfo(dtype).max


def make_consistent(
  result: np.ndarray, image: np.ndarray, *, seamless: str | None = None
) -> Agreement:
  """Changes a result so that its downscaling is the image.

  It is, to half a level, so that rounding gives the image, wherever whole
  numbers between black and white can do that: of fine patterns of full contrast
  there is no such picture, and a difference stays; of an enlargement by less
  than 2, few pixels make one, and their rounding may leave a level.

  Args:
    result: `[H, W, C]`, uint8, uint16 or float32; changed in place.
    image: `[h, w, C]` of its dtype, no larger.
    seamless: Which edges meet, one of `seamless.DIRECTIONS`; None for none.

  Returns:
    The largest differences, before and after.

  Raises:
    ValueError: If the result is smaller than the image.

  >>> image = np.full((6, 8, 1), 50, np.uint8)
  >>> image[2:4, 3:5] = 90
  >>> result = np.full((24, 32, 1), 20, np.uint8)
  >>> agreement = make_consistent(result, image)
  >>> round(agreement.before), agreement.after < 0.5
  (70, True)
  >>> again = resize.imresize_uint8(result, size=(6, 8))
  >>> int(np.abs(again - image.astype(int)).max())
  0
  """
  check_size(result.shape, image.shape)
  wraps = (
    seamless in ("both", "vertical"),
    seamless in ("both", "horizontal"),
  )
  weights = [
    resize.axis_weights(
      result.shape[axis],
      image.shape[axis],
      border="wrap" if wraps[axis] else "mirror",
    )
    for axis in (0, 1)
  ]
  above = [b / s for b, s in zip(result.shape, image.shape, strict=True)]
  side = max(_CONTEXT, math.ceil(_BLOCK / max(above[:2])))
  bands, columns = (
    [
      _Part(weights[axis], image.shape[axis], span, above[axis], wraps[axis])
      for span in _spans(image.shape[axis], side)
    ]
    for axis in (0, 1)
  )
  limits, level = _range(image)
  originals = _Originals(result, reach=math.ceil((_CONTEXT + 4) * above[0]))
  before = after = 0.0
  for rows in bands:
    band = originals.rows(rows.places)
    changed = band[rows.kept]
    for part, channel in itertools.product(columns, range(image.shape[2])):
      block = _Block(rows, part, limits, level, rounds=result.dtype.kind == "u")
      x, *found = block.project(
        band[:, part.places, channel].astype(np.float32),
        image[np.ix_(rows.inside, part.inside)][..., channel].astype(
          np.float32
        ),
      )
      own = x[np.ix_(rows.kept, part.kept)]
      changed[:, part.places[part.kept], channel] = own
      before, after = max(before, found[0]), max(after, found[1])
    originals.replace(rows.places[rows.kept], changed)
  return Agreement(before, after)


def _spans(length: int, side: int) -> list[tuple[int, int]]:
  """Cuts an axis into parts, of which none is but context of another."""
  if length <= side + 2 * _CONTEXT:
    return [(0, length)]
  starts = range(0, length, side)
  return [(start, min(start + side, length)) for start in starts]


def _range(image: np.ndarray) -> tuple[tuple[float, float], float]:
  """Returns the least and the largest value of pixels, and a level."""
  if image.dtype.kind == "f":
    low, high = float(image.min()), float(image.max())
    return (min(low, 0.0), max(high, 1.0)), 1 / _FLOAT_LEVELS
  return (0.0, float(np.iinfo(image.dtype).max)), 1.0


class _Part:
  """Downscaling along one axis, for a part of the image and what is around.

  Args:
    weights: Of all of the axis, as of `resize.axis_weights`.
    length: Of the image.
    span: First pixel of the part, and one past its last.
    above: Pixels of the result for one of the image.
    wraps: Whether the edges meet.

  Attributes:
    inside: Pixels of the image that are looked at.
    counted: Which of these are the part's.
    places: Pixels of the result that make them.
    kept: Which of these are the part's.
    down: D, a sparse matrix.
    up: Its transpose.
    inverse: Of DD', symmetric, dense: it fades from the diagonal.
  """

  def __init__(
    self,
    weights: tuple[np.ndarray, np.ndarray],
    length: int,
    span: tuple[int, int],
    above: float,
    wraps: bool,
  ):
    from scipy import sparse  # Which comes with jax.

    start, stop = span
    inside = np.arange(start - _CONTEXT, stop + _CONTEXT)
    if len(inside) >= length:
      inside = np.arange(length)
    elif wraps:
      inside = inside % length
    else:
      inside = inside[(inside >= 0) & (inside < length)]
    self.inside = inside
    self.counted = (inside >= start) & (inside < stop)
    sources, values = (each[inside] for each in weights)
    self.places, inner = np.unique(sources, return_inverse=True)
    low, high = round(start * above), round(stop * above)
    self.kept = (self.places >= low) & (self.places < high)
    count = len(inside)
    down = sparse.csr_array(
      (values.ravel(), inner.ravel(), np.arange(count + 1) * sources.shape[1]),
      (count, len(self.places)),
    )
    down.sum_duplicates()
    gram = (down @ down.T).toarray()
    damping = _DAMPING * gram.diagonal().mean()
    inverse = np.linalg.inv(gram + damping * np.eye(count))
    self.inverse = inverse.astype(np.float32)
    self.down = down.astype(np.float32)
    self.up = self.down.T.tocsr()


@dataclasses.dataclass(frozen=True)
class _Block:
  """A part of a result, to be projected."""

  rows: _Part
  columns: _Part
  limits: tuple[float, float]
  level: float
  rounds: bool

  def project(
    self, x: np.ndarray, y: np.ndarray
  ) -> tuple[np.ndarray, float, float]:
    """Returns pixels that agree, and the largest differences before and after.

    Args:
      x: float32, of one channel, all places of rows and columns; changed.
      y: float32, what they should be, downscaled.
    """
    error = self._error(x, y)
    first = self._largest(error)
    for _ in range(_MAX_STEPS):
      # What agrees stays as it is, whatever lies elsewhere in the block.
      seen = np.abs(error) >= UNSEEN * self.level
      if not seen.any():
        break
      error *= seen
      z = self.rows.inverse @ error @ self.columns.inverse
      x += self.rows.up @ np.ascontiguousarray((self.columns.up @ z.T).T)
      np.clip(x, *self.limits, out=x)
      error = self._error(x, y)
    return self._rounded(x), first, self._largest(error)

  def _rounded(self, x):
    return np.rint(x) if self.rounds else x

  def _error(self, x, y):
    small = self.rows.down @ self._rounded(x)
    small = (self.columns.down @ small.T).T
    # Beside an edge it overshoots, and is clipped, as all that is downscaled.
    return y - np.clip(small, *self.limits)

  def _largest(self, error):
    own = error[np.ix_(self.rows.counted, self.columns.counted)]
    return float(np.abs(own).max()) / self.level


class _Originals:
  """A result's rows as they had been, while it is changed from top to bottom.

  Args:
    result: The result.
    reach: Rows that a band looks at beyond those that it changes.
  """

  def __init__(self, result: np.ndarray, *, reach: int):
    self._result = result
    self._reach = reach
    self._kept: dict[int, np.ndarray] = {}

  def rows(self, places: np.ndarray) -> np.ndarray:
    """Returns a copy of rows."""
    rows = self._result[places]
    for index, place in enumerate(places.tolist()):
      if place in self._kept:
        rows[index] = self._kept[place]
    return rows

  def replace(self, places: np.ndarray, rows: np.ndarray) -> None:
    """Changes the next rows."""
    later = places[-1] + 1 - self._reach
    for place in [p for p in self._kept if self._reach <= p < later]:
      del self._kept[place]
    for place in places.tolist():
      # The first are looked at again where edges meet.
      if place >= later or place < self._reach:
        self._kept[place] = self._result[place].copy()
    self._result[places] = rows
