"""Line charts: where everything lies, and SVG to stand inside an HTML page.

Lines have the classes `s0`, `s1`, ...; the page gives them colours. As files of
their own, `chart_files` draws them.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

from esrgan_jax.text import printable

__all__ = [
  "HEIGHT",
  "WIDTH",
  "Chart",
  "Line",
  "draw_chart",
  "elements",
  "plan",
  "ticks",
]

WIDTH, HEIGHT = 420, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 34
_MOST_POINTS = 300
# Of a mark's letter, about.
_MARK_WIDTH, _MARK_HEIGHT = 6.5, 11


class Line(NamedTuple):
  """Points of a line; y is None where there is a gap."""

  label: str
  x: Sequence[float]
  y: Sequence[float | None]


class Text(NamedTuple):
  """Words in a chart; x is their `anchor`, y their base line.

  Attributes:
    x: Across.
    y: Down.
    words: What they are.
    anchor: start, middle or end.
    is_mark: Whether they belong to a point, and not to an axis.
  """

  x: float
  y: float
  words: str
  anchor: str
  is_mark: bool = False


class Chart(NamedTuple):
  """Where everything lies in a chart of `WIDTH` by `HEIGHT`, y going down.

  Attributes:
    labels: What the lines are called.
    grid: `(left, right, y)` of the lines behind them.
    texts: Words.
    strokes: Points of each line; None where it has a gap.
    dots: `(line, x, y)` of points that are drawn as such.
  """

  labels: list[str]
  grid: list[tuple[float, float, float]]
  texts: list[Text]
  strokes: list[list[tuple[float, float] | None]]
  dots: list[tuple[int, float, float]]


def plan(
  lines: Sequence[Line],
  *,
  x_label: str,
  log: bool = False,
  marks: Sequence[str] = (),
) -> Chart | None:
  """Returns where everything of a chart lies.

  Args:
    lines: What to draw; long lines are averaged down to 300 points.
    x_label: What the horizontal axis is.
    log: Whether the vertical axis is logarithmic; values <= 0 are left out.
    marks: A text for each point of the first line, drawn beside it; the
      line's points are then drawn as well.

  Returns:
    The chart; None if there is nothing to draw.

  >>> chart = plan([Line("loss", [0, 1], [2.0, 1.0])], x_label="step")
  >>> [len(points) for points in chart.strokes]
  [2]
  >>> plan([Line("loss", [0], [None])], x_label="step")
  """
  labels = [printable(line.label) for line in lines]
  if log:
    lines = [
      line._replace(y=[math.log10(v) if v and v > 0 else None for v in line.y])
      for line in lines
    ]
  lines = [line if marks else _thin(line) for line in lines]
  points = [p for line in lines for p in _points(line) if p]
  if not points:
    return None
  x_low, x_high = _span([x for x, _ in points], margin=0.03 if marks else 0)
  y_low, y_high = _span([y for _, y in points], margin=0.06)

  def place(x: float, y: float) -> tuple[float, float]:
    across = (x - x_low) / (x_high - x_low)
    up = (y - y_low) / (y_high - y_low)
    return (
      round(_LEFT + across * (WIDTH - _LEFT - _RIGHT), 1),
      round(HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM), 1),
    )

  chart = Chart(labels, [], [], [], [])
  for value in _log_ticks(y_low, y_high) if log else ticks(y_low, y_high):
    left, y = place(x_low, value)
    right, _ = place(x_high, value)
    text = _number(10**value if log else value)
    chart.grid.append((left, right, y))
    chart.texts.append(Text(left - 6, y + 4, text, "end"))
  for value in ticks(x_low, x_high, count=5):
    x, y = place(value, y_low)
    chart.texts.append(Text(x, y + 15, _number(value), "middle"))
  middle = (_LEFT + WIDTH - _RIGHT) / 2
  chart.texts.append(Text(middle, HEIGHT - 3, x_label, "middle"))
  for index, line in enumerate(lines):
    placed = [p and place(*p) for p in _points(line)]
    chart.strokes.append(placed)
    solid = [p for p in placed if p]
    if len(solid) == 1 or marks:
      chart.dots.extend((index, x, y) for x, y in solid)
  if marks:
    solid = [point for point in chart.strokes[0] if point] or [(0, 0)]
    (x_first, y_first), (x_last, y_last) = solid[0], solid[-1]
    rises = (x_last - x_first) * (y_last - y_first) <= 0  # y goes down.
    found = [
      _mark(*point, text, rises=rises)
      for point, text in zip(chart.strokes[0], marks, strict=True)
      if point
    ]
    chart.texts.extend(_readable(found))
  return chart


def _readable(marks: Sequence[Text]) -> list[Text]:
  """Leaves out marks over others; the ends of a line tell the most."""
  kept: list[Text] = []
  for mark in [*marks[:1], *marks[:0:-1]]:
    if not any(_overlap(mark, other) for other in kept):
      kept.append(mark)
  return [mark for mark in marks if mark in kept]


def _overlap(a: Text, b: Text) -> bool:
  (left, right), (first, last) = _extent(a), _extent(b)
  return left < last and first < right and abs(a.y - b.y) < _MARK_HEIGHT


def _extent(mark: Text) -> tuple[float, float]:
  width = _MARK_WIDTH * len(mark.words)
  if mark.anchor == "end":
    return mark.x - width, mark.x
  return mark.x, mark.x + width


def _mark(x, y, words, *, rises):
  """Words beside a point, on the side where its line does not go."""
  left = x > (_LEFT + 40 if rises else WIDTH - _RIGHT - 40)
  above = left == rises
  return Text(
    x - 7 if left else x + 7,
    y - 6 if above else y + 14,
    words,
    "end" if left else "start",
    is_mark=True,
  )


def draw_chart(
  lines: Sequence[Line],
  *,
  x_label: str,
  log: bool = False,
  marks: Sequence[str] = (),
) -> str:
  """Returns a chart as an `<svg>` element of a page.

  Args:
    lines: As of `plan`.
    x_label: Likewise.
    log: Likewise.
    marks: Likewise.

  Returns:
    The element, or an empty text if there is nothing to draw.

  >>> svg = draw_chart([Line("loss", [0, 1], [2.0, 1.0])], x_label="step")
  >>> svg.startswith("<svg"), svg.count("<path")
  (True, 1)
  >>> draw_chart([Line("loss", [0], [None])], x_label="step")
  ''
  """
  chart = plan(lines, x_label=x_label, log=log, marks=marks)
  if chart is None:
    return ""
  label = html.escape(", ".join(chart.labels), quote=True)
  return (
    f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    f"{elements(chart)}</svg>"
  )


def elements(chart: Chart) -> str:
  """Returns what is in a chart's `<svg>`, of classes without a style.

  Args:
    chart: As of `plan`.
  """
  parts = [
    f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>'
    for left, right, y in chart.grid
  ]
  for text in chart.texts:
    mark = "mark " * text.is_mark
    kind = f' class="{mark}{text.anchor}"'
    words = html.escape(text.words)
    parts.append(f'<text x="{text.x:g}" y="{text.y:g}"{kind}>{words}</text>')
  parts += [
    f'<path class="line s{index}" d="{_path(points)}"/>'
    for index, points in enumerate(chart.strokes)
  ]
  parts += [
    f'<circle class="dot s{index}" cx="{x}" cy="{y}" r="3.5"/>'
    for index, x, y in chart.dots
  ]
  return "".join(parts)


def ticks(low: float, high: float, *, count: int = 4) -> list[float]:
  """Returns round numbers between two numbers, about `count` of them.

  >>> ticks(0.0, 10.0)
  [0.0, 2.5, 5.0, 7.5, 10.0]
  """
  step = (high - low) / count
  power = 10 ** math.floor(math.log10(step))
  step = min(
    (f * power for f in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - step)
  )
  first = math.ceil(low / step - 1e-9)
  last = math.floor(high / step + 1e-9)
  return [i * step for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
  """Returns logarithms of round numbers."""
  for factors in ((1,), (1, 3), (1, 2, 5)):
    values = [
      power + math.log10(factor)
      for power in range(math.floor(low), math.ceil(high) + 1)
      for factor in factors
    ]
    values = [v for v in values if low <= v <= high]
    if len(values) >= 3:
      return values[:: max(1, len(values) // 5)]
  return [math.log10(v) for v in ticks(10**low, 10**high) if v > 0]


def _points(line: Line) -> list[tuple[float, float] | None]:
  return [
    None if y is None or not math.isfinite(y) else (x, y)
    for x, y in zip(line.x, line.y, strict=True)
  ]


def _thin(line: Line) -> Line:
  """Averages neighbours until a line has few enough points."""
  group = -(-len(line.x) // _MOST_POINTS)
  if group <= 1:
    return line
  x, y = [], []
  for start in range(0, len(line.x), group):
    xs = line.x[start : start + group]
    ys = [v for v in line.y[start : start + group] if v is not None]
    x.append(sum(xs) / len(xs))
    y.append(sum(ys) / len(ys) if ys else None)
  return line._replace(x=x, y=y)


def _span(values: Sequence[float], *, margin: float) -> tuple[float, float]:
  """Returns a range around values that is never empty."""
  low, high = min(values), max(values)
  if high - low < 1e-9 * max(abs(low), abs(high), 1e-12):
    half = abs(low) / 2 or 0.5
    return low - half, high + half
  room = margin * (high - low)
  return low - room, high + room


def _path(points: Sequence[tuple[float, float] | None]) -> str:
  commands, pen = [], "M"
  for point in points:
    if point is None:
      pen = "M"
      continue
    commands.append(f"{pen}{point[0]:g} {point[1]:g}")
    pen = "L"
  return "".join(commands)


def _number(value: float) -> str:
  """Writes a tick's number: 1k for thousands, few digits."""
  size = abs(value)
  if size >= 1e6:
    return f"{value / 1e6:g}M"
  if size >= 1e4:
    return f"{value / 1e3:g}k"
  if size and size < 1e-3:
    power = math.floor(math.log10(size) + 1e-9)
    return f"{value / 10**power:.4g}e{power}"
  return f"{value:.6g}"
