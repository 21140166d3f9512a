"""The report's charts: a phase over its steps, and models over alpha.

They stand in the page, and in files of their own beside it: `write_curves`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from esrgan_jax import storage
from esrgan_jax.evaluation import measures
from esrgan_jax.report import chart, chart_files, metric_log, parts
from esrgan_jax.text import printable
from esrgan_jax.weights import workdir as layout

__all__ = ["FOLDER", "Curve", "of_phase", "trade_off", "write_curves"]

FOLDER = "curves"  # In a workdir.
_DRAWN = {"svg": chart_files.svg, "png": chart_files.png}


class Curve(NamedTuple):
  """A chart's caption, what a file of it is called, and what is drawn."""

  title: str
  name: str
  lines: list[chart.Line]
  options: dict[str, Any]


# What the plane has over PSNR: the first that was measured.
_DISTANCES = ("lpips", "dists", "lpips_vgg", "perceptual")


class _Panel(NamedTuple):
  """A chart of some of a phase's metrics: their names and labels."""

  title: str
  lines: dict[str, str]
  log: bool = False  # Where all values can be.
  name: str = ""  # Else the title.


_PANELS = (
  _Panel("Generator loss", {"g/loss": "loss"}, log=True),
  _Panel("Pixel loss", {"g/pixel": "pixel"}, log=True),
  _Panel("Perceptual loss", {"g/perceptual": "perceptual"}, log=True),
  _Panel(
    "Adversarial losses",
    {"g/adversarial": "generator", "d/loss": "discriminator"},
  ),
  _Panel("Discriminator logits", {"d/real": "real", "d/fake": "fake"}),
  _Panel(
    "Gradient norms",
    {"g/grad_norm": "generator", "d/grad_norm": "discriminator"},
    log=True,
  ),
  _Panel(
    "Learning rate",
    {
      "g/learning_rate": "generator",
      "d/learning_rate": "discriminator",
    },
  ),
  _Panel("Images a second", {"images_per_second": "images/s"}),
  _Panel("Share of the devices' peak", {"peak_share": "share"}),
  _Panel("Share of time spent waiting for data", {"data_wait_share": "share"}),
  _Panel(
    "Memory, GB", {"device_memory_gb": "device", "host_memory_gb": "host"}
  ),
)


def of_phase(title: str, log: Sequence[Mapping[str, Any]]) -> str:
  """Returns the charts of a phase, and what was skipped of it.

  Args:
    title: Of the phase.
    log: Its lines, as of `metric_log.read_metrics`.

  Returns:
    A section of the page; nothing where there is nothing to draw.

  >>> of_phase("PSNR", [{"step": 1}])
  ''
  """
  skipped = max((entry.get("skipped") or 0 for entry in log), default=0)
  note = ""
  if skipped:
    note = f"<p>Updates skipped because they were not finite: {skipped:g}.</p>"
  charts = _figures(_over_steps(log))
  return f"<h2>{title}</h2>{note}{charts}" if charts else ""


def trade_off(
  content: Any, first: str = "first model", last: str = "last model"
) -> str:
  """Returns the perception-distortion curve over alpha, and its table.

  Args:
    content: Of `interpolation.json`.
    first: What the model at alpha 0 is called.
    last: What that at alpha 1 is called.

  Returns:
    A section of the page; nothing where there are no rows.

  >>> trade_off({"rows": []})
  ''
  """
  rows = _rows(content)
  if not rows:
    return ""
  table = parts.table("alpha", [(f"{row['alpha']:g}", row) for row in rows])
  return (
    "<h2>Between the two models</h2>"
    f'<p class="soft">Weights (1 - alpha) * {parts.text(first)} + alpha *'
    f" {parts.text(last)}. Distances: lower is closer.</p>"
    f"{_figures(_over_alpha(rows))}<br>{table}"
  )


def write_curves(
  workdir: str | os.PathLike[str],
  *,
  titles: Mapping[str, str] | None = None,
) -> list[epath.Path]:
  """Writes each chart of a workdir's report as an SVG and a PNG file.

  `curves/psnr_generator_loss.svg` is the PSNR phase's; what is over alpha has
  no phase.

  Args:
    workdir: The folder of a training run. `gs://` works as well.
    titles: What to call phases, by name; none is the name.

  Returns:
    The files; those of these names that were there are replaced.

  Raises:
    OSError: If one cannot be written.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = epath.Path(folder, "psnr")
  ...   with metric_log.MetricLog(path, tensorboard=False) as log:
  ...     log.write(1, {"g/loss": 0.5})
  ...   [path.name for path in write_curves(folder)]
  ['psnr_generator_loss.svg', 'psnr_generator_loss.png']
  """
  workdir = epath.Path(workdir)
  titles, found = titles or {}, []
  for name in layout.order(workdir):
    title = titles.get(name, name.upper())
    found += [
      each._replace(
        title=f"{title}: {each.title}", name=_slug(f"{name} {each.name}")
      )
      for each in _over_steps(metric_log.read_phase(workdir / name))
    ]
  try:
    between = json.loads((workdir / "interpolation.json").read_text())
  except (OSError, ValueError):
    between = None
  found += [
    each._replace(name=_slug(each.name)) for each in _over_alpha(_rows(between))
  ]
  written = []
  for each in found:
    drawn = chart.plan(each.lines, **each.options)
    for suffix, draw in _DRAWN.items() if drawn else ():
      content = draw(drawn, printable(each.title))
      path = workdir / FOLDER / f"{each.name}.{suffix}"
      path.parent.mkdir(exist_ok=True)
      storage.write_whole(path, content, overwrite=True)
      written.append(path)
  return written


def _over_steps(log: Sequence[Mapping[str, Any]]) -> Iterator[Curve]:
  """Yields what there is to draw of a phase: measures, losses, and the rest."""
  rated = [
    _Panel(
      f"{each.heading} on validation images{', ' * bool(each.unit)}{each.unit}",
      {f"eval/{each.name}": each.heading},
      name=each.name,
    )
    for each in parts.measured(log, "eval/")
    if each.curve
  ]
  for panel in (*rated, *_PANELS, *_others(log)):
    lines = []
    for key, label in panel.lines.items():
      entries = [entry for entry in log if key in entry]
      if entries:
        steps = [entry["step"] for entry in entries]
        lines.append(chart.Line(label, steps, [e[key] for e in entries]))
    # A loss against a critic goes below 0, where there are no logarithms.
    below = any((v or 0) < 0 for line in lines for v in line.y)
    options = {"x_label": "step", "log": panel.log and not below}
    yield Curve(panel.title, panel.name or panel.title, lines, options)


def _others(log: Sequence[Mapping[str, Any]]) -> list[_Panel]:
  """A panel each for what other losses and phases log of the networks."""
  shown = {key for panel in _PANELS for key in panel.lines} | {"d/gap"}
  keys = {
    key
    for entry in log
    for key, value in entry.items()
    if key.startswith(("g/", "d/")) and isinstance(value, int | float)
  }
  return [
    _Panel(f"{_NETWORKS[key[0]]} {key[2:].replace('_', ' ')}", {key: key})
    for key in sorted(keys - shown)
  ]


_NETWORKS = {"g": "Generator", "d": "Discriminator"}


def _rows(content: Any) -> list[Mapping[str, Any]]:
  """Returns the rows of `interpolation.json`, by alpha."""
  rows = content.get("rows") if isinstance(content, dict) else content
  rows = [row for row in rows or () if isinstance(row, dict) and "alpha" in row]
  return sorted(rows, key=lambda row: row["alpha"])


def _over_alpha(rows: Sequence[Mapping[str, Any]]) -> Iterator[Curve]:
  """Yields the trade-off, and each measure over alpha."""
  measured = {key for row in rows for key in row if row[key] is not None}
  distance = next((each for each in _DISTANCES if each in measured), "")
  if distance:
    line = chart.Line(
      "models",
      [row.get("psnr_y") or float("nan") for row in rows],
      [row.get(distance) for row in rows],
    )
    names = [f"{row['alpha']:g}" for row in rows]
    options = {"x_label": "PSNR (Y), dB", "marks": names}
    name = f"{measures.looks_of(distance).heading} over PSNR"
    yield Curve(f"{name}, by alpha", name, [line], options)
  for each in parts.measured(rows):
    if not each.curve:
      continue
    values = [row.get(each.name) for row in rows]
    line = chart.Line(each.name, [row["alpha"] for row in rows], values)
    title, name = (f"{n} over alpha" for n in (each.title, each.name))
    yield Curve(title, name, [line], {"x_label": "alpha"})


def _figures(curves: Iterator[Curve]) -> str:
  figures = [
    parts.figure(each.title, svg, [line.label for line in each.lines])
    for each in curves
    if (svg := chart.draw_chart(each.lines, **each.options))
  ]
  return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _slug(name: str) -> str:
  """Letters and digits for a file's name, of what a stranger called things.

  >>> _slug("Perceptual loss")
  'perceptual_loss'
  """
  return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:100] or "curve"
