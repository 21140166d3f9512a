"""What a sweep over alpha looks like: a strip, an animation, a curve.

Pictures are uint8 `[H, W, 3]`, RGB; results `[A, H, W, 3]`, one an alpha.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw

from esrgan_jax.evaluation import measures
from esrgan_jax.report import chart

__all__ = [
  "Crop",
  "animate",
  "choose_crop",
  "draw_strip",
  "durations",
  "plan_curve",
]

_GAP = 4  # Pixels between crops.
_HEADER = 18  # Above them, for what they are.
_COLUMNS = 13  # Crops in a line.
_INK, _BAR = (34, 36, 31), (31, 95, 168)


@dataclasses.dataclass(frozen=True)
class Crop:
  """A square of a picture, in pixels of the image that was upscaled.

  Attributes:
    top: Its first row.
    left: Its first column.
    side: Its length.
  """

  top: int
  left: int
  side: int

  def of(self, picture: np.ndarray, scale: int = 1) -> np.ndarray:
    """Returns the square of a picture that is so much larger.

    >>> Crop(1, 2, 3).of(np.zeros((40, 40, 3)), 4).shape
    (12, 12, 3)
    """
    rows, columns = (
      slice(start * scale, (start + self.side) * scale)
      for start in (self.top, self.left)
    )
    return picture[rows, columns]


def choose_crop(
  first: np.ndarray, last: np.ndarray, *, side: int, scale: int
) -> Crop:
  """Returns the square in which two results differ most.

  Args:
    first: Of one model.
    last: Of another.
    side: In pixels of the image that was upscaled; at most its shorter one.
    scale: Of the models.

  >>> black = np.zeros((32, 40, 3), np.uint8)
  >>> other = black.copy()
  >>> other[28:, 36:] = 255
  >>> crop = choose_crop(black, other, side=2, scale=4)
  >>> crop.top, crop.left
  (6, 8)
  """
  height, width = (n // scale for n in first.shape[:2])
  side = min(side, height, width)
  change = np.zeros((height, width))
  for row in range(height):  # Of large pictures, a row of blocks at a time.
    rows = slice(row * scale, (row + 1) * scale)
    apart = np.abs(first[rows].astype(np.int32) - last[rows]).sum(axis=(0, 2))
    change[row] = apart[: width * scale].reshape(width, scale).sum(axis=1)
  sums = np.pad(change.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
  squares = (
    sums[side:, side:]
    - sums[:-side, side:]
    - sums[side:, :-side]
    + sums[:-side, :-side]
  )
  top, left = np.unravel_index(np.argmax(squares), squares.shape)
  return Crop(int(top), int(left), side)


def draw_strip(columns: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
  """Sets crops side by side, each below what it is.

  Args:
    columns: Names and crops of one size; a line has thirteen at most.

  Returns:
    The picture.

  >>> crop = np.zeros((40, 40, 3), np.uint8)
  >>> draw_strip([("image", crop), ("alpha 0", crop)]).shape
  (58, 132, 3)
  """
  height, width, _ = columns[0][1].shape
  wide = max(width, 64)  # For the name.
  lines = math.ceil(len(columns) / _COLUMNS)
  across = math.ceil(len(columns) / lines)
  picture = np.full(
    (
      lines * (_HEADER + height + _GAP) - _GAP,
      across * (wide + _GAP) - _GAP,
      3,
    ),
    255,
    np.uint8,
  )
  names = []
  for index, (name, crop) in enumerate(columns):
    line, column = divmod(index, across)
    top = line * (_HEADER + height + _GAP)
    left = column * (wide + _GAP)
    names.append((left + 2, top + 3, name))
    top += _HEADER
    picture[top : top + height, left : left + width] = crop
  image = PIL.Image.fromarray(picture)
  draw = PIL.ImageDraw.Draw(image)
  for left, top, name in names:
    draw.text((left, top), name, fill=_INK)
  return np.asarray(image)


def _there_and_back(count: int) -> list[int]:
  return [*range(count), *range(count - 2, 0, -1)]


def durations(count: int) -> list[int]:
  """Returns for how long each frame is seen, in milliseconds.

  Args:
    count: Of alphas.

  >>> durations(3)
  [900, 120, 900, 120]
  """
  ends = (0, count - 1)
  return [900 if i in ends else 120 for i in _there_and_back(count)]


def animate(
  results: np.ndarray, alphas: Sequence[float]
) -> Iterator[np.ndarray]:
  """Yields the frames of an animation: through all alphas, and back.

  Args:
    results: One an alpha.
    alphas: As they are told.

  Yields:
    A frame, with a line above that says where it is.

  >>> frames = list(animate(np.zeros((3, 80, 90, 3), np.uint8), [0, 0.5, 1]))
  >>> len(frames), frames[0].shape
  (4, (98, 90, 3))
  """
  last = len(alphas) - 1
  for index in _there_and_back(len(alphas)):
    height, width, _ = results[index].shape
    frame = np.full((_HEADER + height, width, 3), 255, np.uint8)
    frame[_HEADER:] = results[index]
    # How far it is, for whom numbers are too quick.
    there = max(1, round(width * index / last))
    frame[_HEADER - 2 : _HEADER, :there] = _BAR
    image = PIL.Image.fromarray(frame)
    PIL.ImageDraw.Draw(image).text(
      (2, 2), f"alpha {alphas[index]:g}", fill=_INK
    )
    yield np.asarray(image)


def plan_curve(
  rows: Sequence[Mapping[str, float | None]], *, perception: str
) -> tuple[str, chart.Chart | None]:
  """Returns the perception-distortion curve: its title, and what is drawn.

  Args:
    rows: Each of an `alpha`, and what was measured there by the measures'
      names; `psnr_y` among them. None is not finite.
    perception: The measure on the vertical axis.

  Returns:
    The title, and the chart; None where PSNR is finite nowhere.

  >>> rows = [
  ...   {"alpha": a, "psnr_y": 30.0 - a, "perceptual": 2.0 - a}
  ...   for a in (0.0, 0.5, 1.0)
  ... ]
  >>> title, found = plan_curve(rows, perception="perceptual")
  >>> title
  'Perceptual distance (less is better) over PSNR, by alpha'
  >>> [text.words for text in found.texts if text.is_mark]
  ['0', '0.5', '1']
  """
  known = [row for row in rows if row["psnr_y"] is not None]
  line = chart.Line(
    "models",
    [row["psnr_y"] for row in known],
    [row[perception] for row in known],
  )
  looks = measures.looks_of(perception)
  better = {"lower": " (less is better)", "higher": " (more is better)"}
  return (
    f"{looks.title}{better.get(looks.better, '')} over PSNR, by alpha",
    chart.plan(
      [line],
      x_label="PSNR (Y), dB",
      marks=[f"{row['alpha']:g}" for row in known],
    ),
  )
