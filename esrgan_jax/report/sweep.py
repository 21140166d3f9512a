"""What a sweep over alpha looks like: a strip, an animation, curves.

Pictures are uint8 `[H, W, 3]`, RGB; results `[A, H, W, 3]`, one an alpha.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw

from esrgan_jax.evaluation import measures
from esrgan_jax.report import chart, parts

__all__ = [
  "Crop",
  "animate",
  "choose_crop",
  "draw_curves",
  "draw_strip",
  "durations",
]

_GAP = 4  # Pixels between crops.
_HEADER = 18  # Above them, for what they are.
_COLUMNS = 13  # Crops in a line.
_WIDTH, _HEIGHT, _TITLE = 420, 240, 26  # Of a chart, and what is above it.
_INK, _BAR = (34, 36, 31), (31, 95, 168)

# The page's own colours, in light.
_STYLE = """
svg { background: #ffffff; font-family: system-ui, "Segoe UI", Roboto,
  sans-serif; }
text { fill: #6b6f66; font-size: 11px; } .title { fill: #22241f;
  font-size: 13px; font-weight: 600; }
.mark { fill: #22241f; } .end { text-anchor: end; }
.middle { text-anchor: middle; }
.grid { stroke: #dfe0da; stroke-width: 1; }
.line { fill: none; stroke: #1f5fa8; stroke-width: 1.8;
  stroke-linejoin: round; }
.dot { fill: #1f5fa8; }
"""


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


def draw_curves(
  rows: Sequence[Mapping[str, float | None]], *, perception: str | None
) -> str:
  """Returns the perception-distortion curve, and each measure over alpha.

  Args:
    rows: Each of an `alpha`, and what was measured there by the measures'
      names; `psnr_y` among them. None is not finite.
    perception: The measure on the first chart's vertical axis; None: there is
      no such chart.

  Returns:
    A file's content, SVG.

  >>> rows = [
  ...   {"alpha": a, "psnr_y": 30.0 - a, "ssim_y": 0.9 - a / 10}
  ...   for a in (0.0, 0.5, 1.0)
  ... ]
  >>> svg = draw_curves(rows, perception="ssim_y")
  >>> svg.startswith("<svg"), svg.count("<path")
  (True, 3)
  """
  charts = []
  alphas = [row["alpha"] for row in rows]

  def values(name: str) -> list[float | None]:
    return [row.get(name) for row in rows]

  def add(title: str, svg: str) -> None:
    if svg:
      charts.append((title, svg))

  if perception:
    known = [row for row in rows if row.get("psnr_y") is not None]
    line = chart.Line(
      "models",
      [row["psnr_y"] for row in known],
      [row.get(perception) for row in known],
    )
    looks = measures.looks_of(perception)
    better = {"lower": "less is better", "higher": "more is better"}
    hint = f" ({better[looks.better]})" if looks.better else ""
    names = [f"{row['alpha']:g}" for row in known]
    add(
      f"{looks.title} over PSNR, by alpha{hint}",
      chart.draw_chart([line], x_label="PSNR (Y), dB", marks=names),
    )
  for each in parts.measured(rows):
    line = chart.Line(each.name, alphas, values(each.name))
    add(f"{each.title} over alpha", chart.draw_chart([line], x_label="alpha"))
  across = min(len(charts), 2)
  down = math.ceil(len(charts) / max(across, 1))
  size = across * (_WIDTH + 16) + 16, down * (_HEIGHT + _TITLE + 16) + 16
  pieces = []
  for index, (title, svg) in enumerate(charts):
    row, column = divmod(index, across)
    left, top = 16 + column * (_WIDTH + 16), 16 + row * (_HEIGHT + _TITLE + 16)
    place = f'x="{left}" y="{top + _TITLE}" width="{_WIDTH}" height="{_HEIGHT}"'
    pieces.append(
      f'<text class="title" x="{left}" y="{top + 14}">{html.escape(title)}'
      f"</text>{svg.replace('<svg', f'<svg {place}', 1)}"
    )
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}"'
    f' height="{size[1]}" viewBox="0 0 {size[0]} {size[1]}">'
    f"<style>{_STYLE}</style>{''.join(pieces)}</svg>\n"
  )
