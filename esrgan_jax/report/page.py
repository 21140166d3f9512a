"""Writes `report.html`: one page that shows a training run.

The page stands alone: no script, no file or address beside it, pictures and
curves inside. It shows what it finds in the workdir, so that it can be made at
any time during training too.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import PIL.Image
from etils import epath

from esrgan_jax import storage
from esrgan_jax.evaluation import measures, scores
from esrgan_jax.report import chart, metric_log
from esrgan_jax.text import printable
from esrgan_jax.weights import descent

__all__ = ["write_report"]

# Where the config does not say.
_NETWORK = "RRDBNet"
_PHASES = ("psnr", "gan")
_ORDINALS = ("one", "two", "three", "four", "five", "six")
_BASELINE = "bicubic"
_NO_MEASURES = {"alpha", "name"}  # What else a row holds.
_MOST_PICTURES = 6
_LARGEST_PNG = 3_000_000  # Bytes; beyond, a JPEG looks the same here.


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

_STYLE = """
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


def write_report(
  workdir: str | os.PathLike[str],
  *,
  titles: Mapping[str, str] | None = None,
) -> epath.Path:
  """Writes a workdir's `report.html`.

  Reads, each if it is there: `config.json`; `metrics.jsonl` of each phase's
  folder (or in `metrics/` below), as `metric_log` writes it;
  `evaluation.json`, as `evaluator` writes it; `interpolation.json`, `{"rows":
  [...]}` with `alpha` and means; and `samples/*.png`, of which the last of each
  kind is shown, the kind being the name without its number.

  Args:
    workdir: The folder of a training run. `gs://` works as well.
    titles: What to call phases, by name; none is the name.

  Returns:
    Path of the page; one that was there is replaced.

  Raises:
    FileNotFoundError: If there is no such folder.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   page = write_report(folder).read_text()
  >>> "Nothing has been logged yet" in page
  True
  """
  workdir = epath.Path(workdir)
  if not workdir.is_dir():
    raise FileNotFoundError(f"no folder {workdir}")
  config = _read_json(workdir / "config.json")
  evaluations = _read_evaluations(workdir / "evaluation.json")
  names = _phases(config)
  titles = {name: name.upper() for name in names} | dict(titles or {})
  logs = {name: _read_log(workdir / name) for name in names}
  sections = [
    _descent(workdir),
    _results(evaluations),
    _pictures(workdir / "samples"),
    *(
      _curves(f"Phase {number}: {titles[name]}", logs[name])
      for number, name in zip(_numbers(), names, strict=False)
    ),
    _trade_off(_read_json(workdir / "interpolation.json")),
    _images(evaluations),
    _config(config),
  ]
  facts = {titles[name]: log for name, log in logs.items()}
  body = "\n".join(filter(None, sections))
  if not body:
    body = "<p>Nothing has been logged yet.</p>"
  title = _text(storage.absolute(workdir).name)
  page = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"<title>{title}: ESRGAN training</title>\n<style>{_STYLE}</style></head>\n"
    f"<body><h1>{title}</h1>\n{_facts(config, evaluations, facts)}\n{body}\n"
    "</body></html>\n"
  )
  path = workdir / "report.html"
  storage.write_whole(path, page, overwrite=True)
  return path


def _text(value: object, *, limit: int = 200) -> str:
  """Returns a text for the page, which may be a name that a stranger chose."""
  return html.escape(printable(value, limit=limit))


def _phases(config: Any) -> tuple[str, ...]:
  """Returns the names of a config's phases, in order."""
  try:
    names = config["phase_order"] or _PHASES
    return tuple(name for name in names if isinstance(name, str) and name)
  except (KeyError, TypeError):
    return _PHASES


def _numbers() -> Iterator[str]:
  yield from _ORDINALS
  yield from map(str, itertools.count(len(_ORDINALS) + 1))


def _read_json(path: epath.Path) -> Any:
  """Returns a file's content; None if it is absent or damaged."""
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError):
    return None


def _read_evaluations(path: epath.Path) -> list[dict[str, Any]]:
  try:
    return scores.read_evaluations(path)
  except (OSError, ValueError):
    return []


def _read_log(folder: epath.Path) -> list[dict[str, Any]]:
  return metric_log.read_metrics(folder) or metric_log.read_metrics(
    folder / "metrics"
  )


def _descent(workdir: epath.Path) -> str:
  """Returns a warning where the two models do not belong together."""
  found = descent.relation_in(workdir)
  if not found:
    return ""
  return f"<p>The GAN model {html.escape(found)}, the PSNR model.</p>"


def _facts(config: Any, evaluations: Sequence[Any], logs: Any) -> str:
  """Returns the line below the title, and the numbers that matter most."""
  words = []
  generator = (config or {}).get("generator") or {}
  if generator:
    sizes = ("num_feat", "num_block", "num_grow_ch")
    words.append(str(generator.get("architecture", _NETWORK)))
    if any(key in generator for key in sizes):
      words[0] += " " + "/".join(str(generator.get(k, "?")) for k in sizes)
  if (config or {}).get("scale"):
    words.append(f"x{config['scale']}")
  for phase, log in logs.items():
    if log:
      words.append(f"{log[-1]['step']:,} steps of {phase}")
  facts = []
  base = _mean_of(evaluations, _BASELINE, "psnr_y")
  for each in evaluations:
    value = (each.get("means") or {}).get("psnr_y")
    if value is None:
      continue
    gain = ""
    if base is not None and each.get("model") != _BASELINE:
      gain = f" ({value - base:+.2f})"
    name = _text(each.get("model"))
    facts.append(f"<div><b>{value:.2f} dB</b><span>{name}{gain}</span></div>")
  line = f'<p class="soft">{_text(" · ".join(words))}</p>'
  return line + (f'<div class="facts">{"".join(facts)}</div>' if facts else "")


def _mean_of(evaluations: Sequence[Any], model: str, key: str) -> float | None:
  for each in evaluations:
    if each.get("model") == model:
      return (each.get("means") or {}).get(key)
  return None


def _results(evaluations: Sequence[Mapping[str, Any]]) -> str:
  """Returns the table of means; the best of each column stands out."""
  rows = [(each.get("model"), each.get("means") or {}) for each in evaluations]
  if not rows:
    return ""
  first = evaluations[0]
  count = len(first.get("images") or ())
  note = f"{count} image{'' if count == 1 else 's'}; {first.get('protocol')}."
  return (
    "<h2>Results</h2>"
    f'<p class="soft">{_text(note, limit=1000)}</p>{_table("model", rows)}'
  )


def _images(evaluations: Sequence[Mapping[str, Any]]) -> str:
  """Returns each image's values, a table a model, folded."""
  parts = []
  for each in evaluations:
    rows = [(image.get("name"), image) for image in each.get("images") or ()]
    if rows:
      name = _text(each.get("model"))
      table = _table("image", rows, best=False)
      parts.append(f"<details><summary>{name}</summary>{table}</details>")
  return "<h2>Image by image</h2>" + "".join(parts) if parts else ""


def _table(
  heading: str,
  rows: Sequence[tuple[Any, Mapping[str, Any]]],
  *,
  best: bool = True,
) -> str:
  columns = _measured(values for _, values in rows)
  head = "".join(f"<th>{_text(each.title)}</th>" for each in columns)
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
    cells = [f"<td>{_text(name)}</td>"]
    for each in columns:
      value = values.get(each.name)
      mark = best and len(rows) > 1 and each.better
      mark = mark and value == top[each.name]
      cells.append(f"<td{' class=best' * bool(mark)}>{each.show(value)}</td>")
    lines.append(f"<tr>{''.join(cells)}</tr>")
  return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _measured(
  rows: Iterable[Mapping[str, Any]], prefix: str = ""
) -> list[measures.Measure]:
  """Returns the measures that some rows have numbers of, in columns' order."""
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


def _pictures(folder: epath.Path) -> str:
  """Returns the newest sample picture of each kind."""
  newest: dict[str, epath.Path] = {}
  if folder.is_dir():
    for path in sorted(folder.iterdir(), key=lambda p: _natural(p.name)):
      if path.suffix == ".png" and not path.name.startswith("."):
        newest[re.sub(r"\d+", "", path.stem)] = path
  # What was written last is what matters most: the finished models.
  paths = sorted(newest.values(), key=lambda p: (p.stem != "final", p.name))
  figures = []
  for path in paths[:_MOST_PICTURES]:
    source = _embed(path)
    if source:
      name = _text(path.stem.replace("_", " "))
      figures.append(
        f'<figure class="picture"><figcaption>{name}</figcaption>'
        f'<img src="{source}" alt="{name}"></figure>'
      )
  if not figures:
    return ""
  first, *others = figures
  if others:
    others = ["<details><summary>During training</summary>", *others]
    others.append("</details>")
  return "<h2>Pictures</h2>" + first + "".join(others)


def _natural(name: str) -> list[tuple[int, str]]:
  """Orders step 100 behind step 20."""
  return [
    (int(part), "") if part.isdigit() else (-1, part)
    for part in re.split(r"(\d+)", name)
  ]


def _embed(path: epath.Path) -> str:
  """Returns a picture as a data address; empty if it cannot be read."""
  data, kind = path.read_bytes(), "png"
  try:
    with PIL.Image.open(io.BytesIO(data)) as picture:
      picture.load()
      if len(data) > _LARGEST_PNG:
        buffer, kind = io.BytesIO(), "jpeg"
        picture.convert("RGB").save(buffer, kind, quality=92, subsampling=0)
        data = buffer.getvalue()
  except (OSError, ValueError, SyntaxError):  # Pillow's for damaged files.
    return ""
  return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _curves(title: str, log: Sequence[Mapping[str, Any]]) -> str:
  """Returns the charts of a phase."""
  figures = []
  rated = [
    _Panel(
      f"{each.heading} on validation images{', ' * bool(each.unit)}{each.unit}",
      {f"eval/{each.name}": each.heading},
    )
    for each in _measured(log, "eval/")
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
      figures.append(_figure(panel.title, svg, [line.label for line in lines]))
  skipped = max((entry.get("skipped") or 0 for entry in log), default=0)
  note = ""
  if skipped:
    note = f"<p>Updates skipped because they were not finite: {skipped:g}.</p>"
  if not figures:
    return ""
  charts = f'<div class="charts">{"".join(figures)}</div>'
  return f"<h2>{title}</h2>{note}{charts}"


def _figure(title: str, svg: str, labels: Iterable[str]) -> str:
  labels = list(labels)
  keys = "".join(
    f'<span class="key k{i}">{_text(label)}</span>'
    for i, label in enumerate(labels)
    if len(labels) > 1
  )
  caption = f"<figcaption>{_text(title)}{keys}</figcaption>"
  return f"<figure>{caption}{svg}</figure>"


def _trade_off(content: Any) -> str:
  """Returns the perception-distortion curve over alpha, and its table."""
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
        _figure("Perceptual distance over PSNR, by alpha", svg, ())
      )
  for each in _measured(rows):
    if not each.curve:
      continue
    values = [row.get(each.name) for row in rows]
    line = chart.Line(each.name, [row["alpha"] for row in rows], values)
    svg = chart.draw_chart([line], x_label="alpha")
    if svg:
      figures.append(_figure(f"{each.title} over alpha", svg, ()))
  table = _table("alpha", [(f"{row['alpha']:g}", row) for row in rows])
  return (
    "<h2>Between the two models</h2>"
    '<p class="soft">Weights (1 - alpha) * PSNR model + alpha * GAN model: from'
    " faithful to full of detail. Perceptual distance: lower is closer.</p>"
    f'<div class="charts">{"".join(figures)}</div><br>{table}'
  )


def _config(config: Any) -> str:
  if not config:
    return ""
  text = html.escape(json.dumps(config, indent=2))
  return (
    "<h2>Config</h2><details><summary>config.json</summary>"
    f"<pre>{text}</pre></details>"
  )
