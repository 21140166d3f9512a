"""Pieces of the report's page: its style, texts, tables and figures."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from esrgan_jax.evaluation import measures
from esrgan_jax.text import printable

__all__ = ["STYLE", "figure", "measured", "table", "text"]

_NO_MEASURES = {"alpha", "name"}  # What else a row holds.

STYLE = """
:root { color-scheme: light dark; --page: #fbfbf9; --ink: #22241f;
  --soft: #6b6f66; --rule: #dfe0da; --card: #ffffff; --best: #eef3ea;
  --c0: #1f5fa8; --c1: #c2571a; --c2: #3d7a3a; }
@media (prefers-color-scheme: dark) { :root { --page: #16181a; --ink: #e4e5e1;
  --soft: #9a9e97; --rule: #34383a; --card: #1d2022; --best: #243024;
  --c0: #7fb2ec; --c1: #f0985c; --c2: #8cc888; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 40px 24px 80px;
  background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 28px; font-weight: 650; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 19px; font-weight: 650; margin: 48px 0 12px;
  padding-top: 16px; border-top: 1px solid var(--rule); }
p { margin: 4px 0 12px; max-width: 72ch; }
.soft { color: var(--soft); }
.facts { display: flex; flex-wrap: wrap; gap: 12px 40px; margin: 24px 0 0; }
.facts b { display: block; font-size: 24px; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.facts span { color: var(--soft); font-size: 13px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 18px 6px 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 500; font-size: 13px; }
td.best { font-weight: 650; }
.charts { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); }
figure { margin: 0; background: var(--card); border: 1px solid var(--rule);
  border-radius: 6px; padding: 12px 12px 6px; }
figcaption { font-size: 13px; font-weight: 600; margin: 0 2px 6px; }
.key { font-weight: 400; margin-left: 10px; white-space: nowrap; }
.key::before { content: ""; display: inline-block; width: 14px; height: 3px;
  border-radius: 2px; margin-right: 5px; vertical-align: middle;
  background: var(--colour); }
.k0 { --colour: var(--c0); } .k1 { --colour: var(--c1); }
.k2 { --colour: var(--c2); }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11px;
  font-variant-numeric: tabular-nums; }
svg .mark { fill: var(--ink); } svg .end { text-anchor: end; }
svg .middle { text-anchor: middle; }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .line { fill: none; stroke: var(--c0); stroke-width: 1.8;
  stroke-linejoin: round; }
svg .s1 { stroke: var(--c1); } svg .s2 { stroke: var(--c2); }
svg .dot { fill: var(--c0); stroke: none; } svg .dot.s1 { fill: var(--c1); }
.picture { padding: 12px; margin-bottom: 16px; }
.picture img { display: block; max-width: 100%; height: auto; }
details { margin: 16px 0; }
summary { cursor: pointer; color: var(--soft); }
pre { background: var(--card); border: 1px solid var(--rule);
  border-radius: 6px; padding: 14px; overflow-x: auto;
  font: 12.5px/1.5 ui-monospace, Menlo, Consolas, monospace; }
"""


def text(value: object, *, limit: int = 200) -> str:
  """Returns a text for the page, which may be a name that a stranger chose.

  >>> text("a<b")
  'a&lt;b'
  """
  return html.escape(printable(value, limit=limit))


def table(
  heading: str,
  rows: Sequence[tuple[Any, Mapping[str, Any]]],
  *,
  best: bool = True,
) -> str:
  """Returns a table: a column a measure that any row has.

  Args:
    heading: Of the rows' names.
    rows: Names, and values by the names of measures.
    best: Whether the best of each column stands out.
  """
  columns = measured(values for _, values in rows)
  head = "".join(f"<th>{text(each.title)}</th>" for each in columns)
  lines = [f"<tr><th>{heading}</th>{head}</tr>"]
  choose = {"lower": min, "higher": max}
  top = {
    each.name: choose[each.better](
      values[each.name]
      for _, values in rows
      if values.get(each.name) is not None
    )
    for each in columns
    if each.better
  }
  for name, values in rows:
    cells = [f"<td>{text(name)}</td>"]
    for each in columns:
      value = values.get(each.name)
      mark = best and len(rows) > 1 and each.better
      mark = mark and value == top[each.name]
      cells.append(f"<td{' class=best' * bool(mark)}>{each.show(value)}</td>")
    lines.append(f"<tr>{''.join(cells)}</tr>")
  return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def measured(
  rows: Iterable[Mapping[str, Any]], prefix: str = ""
) -> list[measures.Measure]:
  """Returns the measures that some rows have numbers of, in columns' order.

  Args:
    rows: Values by name.
    prefix: Of the names of measures among them.

  >>> [m.heading for m in measured([{"step": 1, "eval/ssim_y": 0.5}], "eval/")]
  ['SSIM Y']
  """
  found = {
    key.removeprefix(prefix)
    for row in rows
    for key, value in row.items()
    if key.startswith(prefix) and isinstance(value, int | float)
  }
  found -= _NO_MEASURES
  known = [name for name in measures.MEASURES if name in found]
  others = sorted(found.difference(known))
  return list(map(measures.looks_of, [*known, *others]))


def figure(title: str, svg: str, labels: Iterable[str]) -> str:
  """Returns a chart with its caption, and a key where it has several lines."""
  labels = list(labels)
  keys = "".join(
    f'<span class="key k{i}">{text(label)}</span>'
    for i, label in enumerate(labels)
    if len(labels) > 1
  )
  caption = f"<figcaption>{text(title)}{keys}</figcaption>"
  return f"<figure>{caption}{svg}</figure>"
