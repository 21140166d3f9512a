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

__all__ = ["UNSEEN", "Agreement", "check_size", "levels", "make_consistent"]

# Levels: what is less is gone once it is rounded.
UNSEEN = 0.5

_MAX_STEPS = 12
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
    first = self._largest(error[mine])
    for _ in range(_MAX_STEPS):
      # What agrees stays as it is, whatever lies elsewhere in the band.
      seen = np.abs(error) >= UNSEEN * self.level
      if not seen.any():
        break
      error *= seen
      x += self.rows.up(self.columns.up(error.swapaxes(0, 1)).swapaxes(0, 1))
      np.clip(x, *self.limits, out=x)
      error = self._error(x, y)
    return x, first, self._largest(error[mine])

  def _error(self, x, y):
    small = self.rows.down(np.rint(x) if self.rounds else x)
    small = self.columns.down(small.swapaxes(0, 1)).swapaxes(0, 1)
    # Beside an edge it overshoots, and is clipped, as all that is downscaled.
    return y - np.clip(small, *self.limits)

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
