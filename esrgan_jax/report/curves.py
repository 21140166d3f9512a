"""The report's charts: a phase over its steps, and models over alpha."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from esrgan_jax.report import chart, parts

__all__ = ["of_phase", "trade_off"]


class _Panel(NamedTuple):
  """A chart of some of a phase's metrics: their names and labels."""

  title: str
  lines: dict[str, str]
  log: bool = False


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
  figures = []
  rated = [
    _Panel(
      f"{each.heading} on validation images{', ' * bool(each.unit)}{each.unit}",
      {f"eval/{each.name}": each.heading},
    )
    for each in parts.measured(log, "eval/")
    if each.curve
  ]
  for panel in (*rated, *_PANELS):
    lines = []
    for key, label in panel.lines.items():
      entries = [entry for entry in log if key in entry]
      if entries:
        steps = [entry["step"] for entry in entries]
        lines.append(chart.Line(label, steps, [e[key] for e in entries]))
    svg = chart.draw_chart(lines, x_label="step", log=panel.log)
    if svg:
      figures.append(
        parts.figure(panel.title, svg, [line.label for line in lines])
      )
  skipped = max((entry.get("skipped") or 0 for entry in log), default=0)
  note = ""
  if skipped:
    note = f"<p>Updates skipped because they were not finite: {skipped:g}.</p>"
  if not figures:
    return ""
  charts = f'<div class="charts">{"".join(figures)}</div>'
  return f"<h2>{title}</h2>{note}{charts}"


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
  rows = content.get("rows") if isinstance(content, dict) else content
  rows = [row for row in rows or () if isinstance(row, dict) and "alpha" in row]
  if not rows:
    return ""
  rows = sorted(rows, key=lambda row: row["alpha"])
  figures = []
  names = [f"{row['alpha']:g}" for row in rows]
  if any(row.get("perceptual") is not None for row in rows):
    line = chart.Line(
      "models",
      [row.get("psnr_y") or float("nan") for row in rows],
      [row.get("perceptual") for row in rows],
    )
    svg = chart.draw_chart([line], x_label="PSNR (Y), dB", marks=names)
    if svg:
      figures.append(
        parts.figure("Perceptual distance over PSNR, by alpha", svg, ())
      )
  for each in parts.measured(rows):
    if not each.curve:
      continue
    values = [row.get(each.name) for row in rows]
    line = chart.Line(each.name, [row["alpha"] for row in rows], values)
    svg = chart.draw_chart([line], x_label="alpha")
    if svg:
      figures.append(parts.figure(f"{each.title} over alpha", svg, ()))
  table = parts.table("alpha", [(f"{row['alpha']:g}", row) for row in rows])
  return (
    "<h2>Between the two models</h2>"
    f'<p class="soft">Weights (1 - alpha) * {parts.text(first)} + alpha *'
    f" {parts.text(last)}. Perceptual distance: lower is closer.</p>"
    f'<div class="charts">{"".join(figures)}</div><br>{table}'
  )
