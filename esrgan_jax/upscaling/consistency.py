"""Makes results agree with their images: downscaled, they are those again.

A network may drift: in colour, in brightness, in what it makes of fine lines.
Of all pictures whose downscaling is the image, the one nearest to the network's
result is found here: with D for downscaling, a linear map, x + D'(DD')^-1(y -
Dx) for the result x of the image y. Where that leaves the range of pixels it is
clipped, and again projected, a few times: back-projection (Irani and Peleg,
"Improving Resolution by Image Registration", 1991), whose step is exact.

D is MATLAB's bicubic `imresize`, antialiased: what made the LR images of the
field. It runs along rows and columns one after the other, and so does all of
this, in bands of rows: what a row becomes depends on few others.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from esrgan_jax import resize

__all__ = ["Agreement", "make_consistent"]

_MAX_STEPS = 12
# Steps, and what they must take off a difference together for another one.
_PATIENCE, _SLOW = 4, 1.05
# Of a band, as float32: the largest of the three arrays that there are.
_BAND_BYTES = 2**25
# How far a band looks beyond what it keeps, in rows of the image. A step fades
# by some three from row to row.
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


def make_consistent(
  result: np.ndarray, image: np.ndarray, *, seamless: str | None = None
) -> Agreement:
  """Changes a result so that its downscaling is the image.

  It is, to half a level, so that rounding gives the image, wherever pixels
  between black and white can do that: fine patterns of full contrast have no
  such picture, and keep a difference.

  Args:
    result: `[H, W, C]`, uint8, uint16 or float32; changed in place.
    image: `[h, w, C]` of its dtype, no larger.
    seamless: Which edges meet, one of `seamless.DIRECTIONS`; None for none.

  Returns:
    The largest differences, before and after.

  Raises:
    ValueError: If the result is smaller than the image.

  >>> image = np.zeros((6, 8, 1), np.uint8)
  >>> image[2:4, 3:5] = 90
  >>> result = np.full((24, 32, 1), 20, np.uint8)
  >>> agreement = make_consistent(result, image)
  >>> agreement.before.round(1), agreement.after < 0.5
  (70.0, True)
  >>> again = resize.imresize_uint8(result, size=(6, 8))
  >>> int(np.abs(again - image.astype(int)).max())
  0
  """
  if any(map(int.__lt__, result.shape[:2], image.shape[:2])):
    raise ValueError(
      "a result of {1} x {0} pixels cannot be consistent with its image of {3}"
      " x {2}: it is smaller; enlarge, or do without".format(
        *result.shape[:2], *image.shape[:2]
      )
    )
  wraps = (
    seamless in ("both", "vertical"),
    seamless in ("both", "horizontal"),
  )
  rows, columns = (
    resize.axis_weights(
      result.shape[axis],
      image.shape[axis],
      border="wrap" if wraps[axis] else "mirror",
    )
    for axis in (0, 1)
  )
  columns = _Axis(columns, np.arange(image.shape[1]))
  limits, level = _range(image)
  height, above = image.shape[0], result.shape[0] / image.shape[0]
  row_bytes = 4 * int(np.prod(result.shape[1:]))
  step = max(_CONTEXT, int(_BAND_BYTES / (row_bytes * above)))
  if height <= step + 2 * _CONTEXT:
    step = height
  originals = _Originals(result, reach=math.ceil((_CONTEXT + 4) * above))
  before = after = 0.0
  for top in range(0, height, step):
    stop = min(top + step, height)
    inside = np.arange(top - _CONTEXT, stop + _CONTEXT)
    if len(inside) >= height:
      inside = np.arange(height)
    elif wraps[0]:
      inside = inside % height
    else:
      inside = inside[(inside >= 0) & (inside < height)]
    axis = _Axis(rows, inside)
    band = _Band(axis, columns, limits, level, rounds=image.dtype.kind == "u")
    x, *found = band.project(
      originals.rows(axis.places),
      image[inside].astype(np.float32),
      (inside >= top) & (inside < stop),
    )
    low, high = round(top * above), round(stop * above)
    mine = (axis.places >= low) & (axis.places < high)
    originals.replace(axis.places[mine], x[mine])
    before, after = max(before, found[0]), max(after, found[1])
  return Agreement(before, after)


def _range(image: np.ndarray) -> tuple[tuple[float, float], float]:
  """Returns the least and the largest value of pixels, and a level."""
  if image.dtype.kind == "f":
    low, high = float(image.min()), float(image.max())
    return (min(low, 0.0), max(high, 1.0)), 1 / _FLOAT_LEVELS
  return (0.0, float(np.iinfo(image.dtype).max)), 1.0


class _Axis:
  """Downscaling along one axis, or of some of its pixels: a sparse matrix.

  Attributes:
    places: The pixels of the result that are looked at.
  """

  def __init__(
    self, weights: tuple[np.ndarray, np.ndarray], chosen: np.ndarray
  ):
    from scipy import sparse  # Which comes with jax.
    from scipy.sparse import linalg

    sources, values = (each[chosen] for each in weights)
    self.places, inner = np.unique(sources, return_inverse=True)
    count = len(chosen)
    starts = np.arange(count + 1) * sources.shape[1]
    down = sparse.csr_array(
      (values.ravel(), inner.ravel(), starts), (count, len(self.places))
    )
    down.sum_duplicates()
    gram = (down @ down.T).tocsc()
    damping = _DAMPING * gram.diagonal().mean()
    gram = gram + damping * sparse.eye_array(count, format="csc")
    self._down = down.astype(np.float32)
    self._up = self._down.T.tocsr()
    self._solve = linalg.splu(gram.astype(np.float32)).solve

  def down(self, x: np.ndarray) -> np.ndarray:
    """Downscales along the first axis."""
    return self._along(self._down.__matmul__, x)

  def up(self, y: np.ndarray) -> np.ndarray:
    """Returns the least that, downscaled, is `y`."""
    return self._along(lambda flat: self._up @ self._solve(flat), y)

  @staticmethod
  def _along(function, x):
    flat = np.ascontiguousarray(x).reshape(len(x), -1)
    return function(flat).reshape(-1, *x.shape[1:])


@dataclasses.dataclass(frozen=True)
class _Band:
  """Some rows of a result, to be projected."""

  rows: _Axis
  columns: _Axis
  limits: tuple[float, float]
  level: float
  rounds: bool

  def project(
    self, x: np.ndarray, y: np.ndarray, mine: np.ndarray
  ) -> tuple[np.ndarray, float, float]:
    """Returns rows that agree, and the largest differences before and after.

    Args:
      x: float32 `[places of rows, W, C]`; changed.
      y: float32 `[rows, w, C]`, what they should be, downscaled.
      mine: Which of `y` count.
    """
    error = self._error(x, y)
    first = last = self._largest(error[mine])
    found: list[float] = []
    for step in range(_MAX_STEPS):
      if last < 0.5:
        break
      if step >= _PATIENCE and found[-_PATIENCE] < _SLOW * last:
        break
      found.append(last)
      if step:
        # What clipping or rounding has left, and no more.
        error[np.abs(error) < self.level / 2] = 0
      x += self.rows.up(self.columns.up(error.swapaxes(0, 1)).swapaxes(0, 1))
      np.clip(x, *self.limits, out=x)
      error = self._error(x, y)
      last = self._largest(error[mine])
    return x, first, last

  def _error(self, x, y):
    small = self.rows.down(np.rint(x) if self.rounds else x)
    return y - self.columns.down(small.swapaxes(0, 1)).swapaxes(0, 1)

  def _largest(self, error):
    return float(np.abs(error).max()) / self.level


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
    """Returns rows as float32."""
    rows = self._result[places].astype(np.float32)
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
    if self._result.dtype.kind == "u":
      rows = np.rint(rows)
    self._result[places] = rows
