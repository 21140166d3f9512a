"""Charts as files of their own, SVG and PNG, for papers, slides and chats.

Both are light, with a title and, of several lines, a key. Pillow draws the
PNG: lines four times as large and shrunk, so that they are smooth.
"""

from __future__ import annotations

import html
import io

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from esrgan_jax.report import chart as chart_lib

__all__ = ["png", "svg"]

_COLOURS = ("#1f5fa8", "#c2571a", "#3d7a3a", "#8a3f8f")
_INK, _SOFT, _RULE, _PAPER = "#22241f", "#6b6f66", "#dfe0da", "#ffffff"
_TITLE, _SIZE = 14, 11  # Of letters, in the chart's units.
_HEAD, _KEY = 26, 18  # What is above the chart: its title, and a key.
_LETTER = 6.2  # About as wide is one of `_SIZE`.
_DOT = 3.5
_ZOOM = 2  # Pixels of a PNG for a unit.
_FINER = 2  # And how many times as many while lines are drawn.
_ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}


def svg(chart: chart_lib.Chart, title: str) -> str:
  """Returns a chart as an SVG file's content.

  Args:
    chart: As of `chart.plan`.
    title: Stands above it.

  >>> line = chart_lib.Line("loss", [0, 1], [2.0, 1.0])
  >>> content = svg(chart_lib.plan([line], x_label="step"), "A < B")
  >>> content.startswith("<svg xmlns="), "A &lt; B" in content
  (True, True)
  """
  head = _head(chart)
  height = chart_lib.HEIGHT + head
  colours = "".join(
    f".s{i} {{ stroke: {colour}; }} .dot.s{i}, .k{i} {{ fill: {colour}; }}\n"
    for i, colour in enumerate(_COLOURS)
  )
  name = html.escape(title, quote=True)
  keys = "".join(
    f'<rect class="k{i % len(_COLOURS)}" x="{x}" y="{y - 5}" width="14"'
    f' height="3"/><text x="{x + 19}" y="{y}">{html.escape(label)}</text>'
    for i, (x, y, label) in enumerate(_keys(chart))
  )
  inside = chart_lib.elements(chart)
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * chart_lib.WIDTH}"'
    f' height="{2 * height}" viewBox="0 0 {chart_lib.WIDTH} {height}"'
    f' role="img" aria-label="{name}">\n<style>\n'
    f"text {{ fill: {_SOFT}; font: {_SIZE}px system-ui, sans-serif; }}\n"
    f".title {{ fill: {_INK}; font-size: {_TITLE}px; font-weight: 600; }}\n"
    f".mark {{ fill: {_INK}; }} .end {{ text-anchor: end; }}\n"
    ".middle { text-anchor: middle; }\n"
    f".grid {{ stroke: {_RULE}; stroke-width: 1; }}\n"
    ".line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }\n"
    f"{colours}.dot {{ stroke: none; }}\n</style>\n"
    f'<rect width="100%" height="100%" fill="{_PAPER}"/>\n'
    f'<text class="title" x="12" y="18">{name}</text>{keys}\n'
    f'<g transform="translate(0 {head})">{inside}</g>\n</svg>\n'
  )


def png(chart: chart_lib.Chart, title: str) -> bytes:
  """Returns a chart as a PNG file's content, two pixels a unit.

  Args:
    chart: As of `chart.plan`.
    title: Stands above it.

  >>> line = chart_lib.Line("loss", [0, 1], [2.0, 1.0])
  >>> content = png(chart_lib.plan([line], x_label="step"), "Loss")
  >>> PIL.Image.open(io.BytesIO(content)).size
  (840, 532)
  """
  head = _head(chart)
  width, height = _ZOOM * chart_lib.WIDTH, _ZOOM * (chart_lib.HEIGHT + head)
  large = PIL.Image.new("RGB", (_FINER * width, _FINER * height), _PAPER)
  draw, unit = PIL.ImageDraw.Draw(large), _ZOOM * _FINER
  for left, right, y in chart.grid:
    y = unit * (y + head)
    draw.line((unit * left, y, unit * right, y), _RULE, unit)
  for index, points in enumerate(chart.strokes):
    colour = _COLOURS[index % len(_COLOURS)]
    for part in _unbroken(points):
      placed = [(unit * x, unit * (y + head)) for x, y in part]
      draw.line(placed, colour, round(1.8 * unit), joint="curve")
  for index, x, y in chart.dots:
    place = (unit * x, unit * (y + head))
    draw.circle(place, _DOT * unit, _COLOURS[index % len(_COLOURS)])
  for index, (x, y, _) in enumerate(_keys(chart)):
    box = (unit * x, unit * (y - 5), unit * (x + 14), unit * (y - 2))
    draw.rectangle(box, _COLOURS[index % len(_COLOURS)])
  picture = large.reduce(_FINER)
  draw = PIL.ImageDraw.Draw(picture)

  def write(x, y, words, *, size=_SIZE, colour=_SOFT, anchor="start"):
    font = PIL.ImageFont.load_default(_ZOOM * size)
    place = (_ZOOM * x, _ZOOM * y)
    draw.text(place, words, colour, font, anchor=_ANCHORS[anchor])

  write(12, 18, title, size=_TITLE, colour=_INK)
  for x, y, label in _keys(chart):
    write(x + 19, y, label)
  for text in chart.texts:
    colour = _INK if text.is_mark else _SOFT
    write(text.x, text.y + head, text.words, colour=colour, anchor=text.anchor)
  buffer = io.BytesIO()
  picture.save(buffer, "png")
  return buffer.getvalue()


def _head(chart):
  return _HEAD + _KEY * (len(chart.labels) > 1)


def _keys(chart):
  """Where the key's entries lie, and what they say; one line needs none."""
  x = 12.0
  for label in chart.labels if len(chart.labels) > 1 else ():
    yield x, _HEAD + 10, label
    x += 19 + _LETTER * len(label) + 14


def _unbroken(points):
  """The parts of a line between its gaps."""
  part = []
  for point in (*points, None):
    if point is not None:
      part.append(point)
    elif part:
      if len(part) > 1:
        yield part
      part = []
