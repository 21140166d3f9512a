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
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import PIL.Image
from etils import epath

from esrgan_jax import storage
from esrgan_jax.evaluation import scores
from esrgan_jax.report import curves, film, metric_log, parts
from esrgan_jax.weights import descent
from esrgan_jax.weights import workdir as layout

__all__ = ["write_report"]

# Where the config does not say.
_NETWORK = "RRDBNet"
_ORDINALS = ("one", "two", "three", "four", "five", "six")
_BASELINE = "bicubic"
_MOST_PICTURES = 6
_LARGEST_FILM = 20_000_000  # Bytes; a page that holds more is slow to open.
_LARGEST_PNG = 3_000_000  # Bytes; beyond, a JPEG looks the same here.


def write_report(
  workdir: str | os.PathLike[str],
  *,
  titles: Mapping[str, str] | None = None,
) -> epath.Path:
  """Writes a workdir's `report.html`.

  Reads, each if it is there: `config.json`; `metrics.jsonl` of each phase's
  folder (or in `metrics/` below), as `metric_log` writes it;
  `evaluation.json`, as `evaluator` writes it; `interpolation.json`, `{"rows":
  [...]}` with `alpha` and means; `samples/*.png`, of which the last of each
  kind is shown, the kind being the name without its number; and `film.webp`.

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
  names = layout.order(workdir)
  titles = {name: name.upper() for name in names} | dict(titles or {})
  logs = {name: metric_log.read_phase(workdir / name) for name in names}
  sections = [
    _descent(workdir),
    _results(evaluations),
    _pictures(workdir / "samples", names if config else ()),
    _film(workdir / film.NAME) if _has_film(config) else "",
    *(
      curves.of_phase(f"Phase {number}: {titles[name]}", logs[name])
      for number, name in zip(_numbers(), names, strict=False)
    ),
    curves.trade_off(
      _read_json(workdir / "interpolation.json"), *_ends(titles, names)
    ),
    _images(evaluations),
    _config(config),
  ]
  facts = {titles[name]: log for name, log in logs.items()}
  body = "\n".join(filter(None, sections))
  if not body:
    body = "<p>Nothing has been logged yet.</p>"
  title = parts.text(storage.absolute(workdir).name)
  page = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"<title>{title}: ESRGAN training</title>\n"
    f"<style>{parts.STYLE}</style></head>\n"
    f"<body><h1>{title}</h1>\n{_facts(config, evaluations, facts)}\n{body}\n"
    "</body></html>\n"
  )
  path = workdir / "report.html"
  storage.write_whole(path, page, overwrite=True)
  return path


def _ends(titles: Mapping[str, str], names: Sequence[str]) -> tuple[str, str]:
  """Returns what the models are called between which others lie."""
  if len(names) > 1:
    return f"{titles[names[0]]} model", f"{titles[names[-1]]} model"
  # The one phase began from another's.
  last = f"{titles[names[0]]} model" if names else "last model"
  return "first model", last


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


def _descent(workdir: epath.Path) -> str:
  """Returns a warning where the models do not belong together."""
  found = descent.relation_in(workdir)
  if not found:
    return ""
  return f"<p>{html.escape(found[0].upper() + found[1:])}.</p>"


def _facts(config: Any, evaluations: Sequence[Any], logs: Any) -> str:
  """Returns the line below the title, and the numbers that matter most."""
  words = []
  generator = (config or {}).get("generator") or {}
  if generator:
    sizes = ("num_feat", "num_block", "num_grow_ch")
    words.append(str(generator.get("architecture", _NETWORK)))
    if there := [str(generator[key]) for key in sizes if key in generator]:
      words[0] += " " + "/".join(there)
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
    name = parts.text(each.get("model"))
    facts.append(f"<div><b>{value:.2f} dB</b><span>{name}{gain}</span></div>")
  line = f'<p class="soft">{parts.text(" · ".join(words))}</p>'
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
    f'<p class="soft">{parts.text(note, limit=1000)}</p>'
    f"{parts.table('model', rows)}"
  )


def _images(evaluations: Sequence[Mapping[str, Any]]) -> str:
  """Returns each image's values, a table a model, folded."""
  folded = []
  for each in evaluations:
    rows = [(image.get("name"), image) for image in each.get("images") or ()]
    if rows:
      name = parts.text(each.get("model"))
      table = parts.table("image", rows, best=False)
      folded.append(f"<details><summary>{name}</summary>{table}</details>")
  return "<h2>Image by image</h2>" + "".join(folded) if folded else ""


def _pictures(folder: epath.Path, phases: Sequence[str]) -> str:
  """Returns the newest sample picture of each kind.

  Args:
    folder: Where they are.
    phases: Those of the config, pictures of whose steps are shown; none where
      there is no config: all are shown then.
  """
  newest: dict[str, epath.Path] = {}
  if folder.is_dir():
    for path in sorted(folder.iterdir(), key=lambda p: _natural(p.name)):
      step = re.fullmatch(r"(.+)_\d+", path.stem)
      if step and phases and step[1] not in phases:
        continue
      if path.suffix == ".png" and not path.name.startswith("."):
        kind = step[1] if step else re.sub(r"\d+", "", path.stem)
        newest[kind] = path
  # What was written last is what matters most: the finished models.
  paths = sorted(newest.values(), key=lambda p: (p.stem != "final", p.name))
  figures = []
  for path in paths[:_MOST_PICTURES]:
    source = _embed(path)
    if source:
      name = parts.text(path.stem.replace("_", " "))
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


def _has_film(config: Any) -> bool:
  """Whether a film is of these models, and not of those before them."""
  settings = config.get("film") if isinstance(config, dict) else None
  return not isinstance(settings, dict) or settings.get("enabled") is not False


def _film(path: epath.Path) -> str:
  """Returns the film, which plays in the page."""
  try:
    data = path.read_bytes()
  except OSError:
    return ""
  if not film.is_film(data):
    return ""
  name = parts.text(path.name)
  if len(data) > _LARGEST_FILM:
    size = f"{len(data) / 1e6:.0f} MB"
    return f"<h2>Training film</h2><p>{size}: see {name}, beside this page.</p>"
  source = f"data:image/webp;base64,{base64.b64encode(data).decode()}"
  return (
    "<h2>Training film</h2>"
    '<p class="soft">One picture as it was upscaled in the course of the'
    f" training; {name}.</p>"
    f'<figure class="picture"><img src="{source}" alt="training film">'
    "</figure>"
  )


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


def _config(config: Any) -> str:
  if not config:
    return ""
  text = html.escape(json.dumps(config, indent=2))
  return (
    "<h2>Config</h2><details><summary>config.json</summary>"
    f"<pre>{text}</pre></details>"
  )
