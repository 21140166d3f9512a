"""Draws a picture of what a training's augmentation does to its pairs.

A column is an augmentation, done to every pair, with the strengths of the
config; two rows are a pair: LR, its pixels enlarged, and HR. With a config that
has any on, the last column is what its training would see. Photos are those of
the config, or scikit-image's.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from esrgan_jax import augment, console, storage
from esrgan_jax.data import sources
from esrgan_jax.errors import UsageError
from esrgan_jax.report import samples

# CutBlur undoes what has been done to LR: there must be something.
_BEFORE = {"cutblur": ("blur", "noise")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  parser.add_argument(
    "photos",
    nargs="?",
    help="a folder, HR::LR, or what else config.data.sources may be",
  )
  parser.add_argument(
    "-o",
    "--output",
    type=pathlib.Path,
    default=pathlib.Path("augmentation.png"),
    help="the picture (default: %(default)s)",
  )
  parser.add_argument(
    "--overwrite", action="store_true", help="replace a picture of that name"
  )
  parser.add_argument("--config", metavar="FILE", help="a training's config")
  parser.add_argument(
    "--phase",
    help="whose augmentation, if phases differ (default: the first)",
  )
  parser.add_argument(
    "--set",
    action="append",
    default=[],
    metavar="NAME.OPTION=VALUE",
    help="another strength or probability, such as noise.levels=5,25; may be"
    " given several times",
  )
  parser.add_argument(
    "--scale", type=int, help="HR pixels per LR pixel (default: config's, or 4)"
  )
  parser.add_argument(
    "--size",
    type=int,
    help="HR pixels a side (default: config.patch_size, or 128)",
  )
  parser.add_argument(
    "--pairs", type=int, default=3, help="how many (default: %(default)s)"
  )
  parser.add_argument(
    "--seed",
    type=int,
    default=0,
    help="another one draws other values (default: %(default)s)",
  )


def run(args: argparse.Namespace) -> int:
  """Writes the picture; returns the exit status."""
  defaults = {
    "photos": "sample_photos",
    "scale": 4,
    "size": 128,
    "settings": {"one_of": False, "operations": augment.defaults()},
  }
  if args.config:
    defaults |= _of_config(args.config, args.phase)
  elif args.phase:
    raise UsageError("--phase is a phase of a config: give --config as well")
  settings = defaults["settings"]
  for text in args.set:
    _assign(settings["operations"], text)
  scale = defaults["scale"] if args.scale is None else args.scale
  size = defaults["size"] if args.size is None else args.size
  if min(scale, size, args.pairs) < 1:
    raise UsageError("--scale, --size and --pairs must be 1 or more")
  if size % scale:
    raise UsageError(
      f"--size is {size}; it must be a multiple of the scale, {scale}, such as"
      f" {size - size % scale or scale}"
    )
  if args.output.suffix.lower() != ".png":
    raise UsageError(f"-o {args.output}: it is a PNG file; end it in .png")
  storage.check_output(args.output, overwrite=args.overwrite)
  source = sources.open_source(args.photos or defaults["photos"], scale=scale)
  sources.require_hr(source, "the source")
  picture = _draw(source, settings, scale, size, args)
  storage.write_whole(
    args.output, samples.png(picture), overwrite=args.overwrite
  )
  console.make_console().print(console.lines(f"wrote {args.output}"))
  return 0


def _of_config(path: str, phase: str | None) -> dict[str, Any]:
  """What a config says, of what this command needs to know."""
  # With what trains; nothing else here needs it.
  from esrgan_jax.training import config as config_lib
  from esrgan_jax.training import phases

  config = config_lib.complete(config_lib.read_config(path))
  names = phases.order(config)
  if phase and phase not in names:
    raise UsageError(f"--phase is {phase!r}; {path} has {', '.join(names)}")
  return {
    "photos": config.data.sources,
    "scale": config.scale,
    "size": config.patch_size,
    "settings": phases.augmentation(config, phase or names[0]),
  }


def _assign(operations: Mapping[str, dict[str, Any]], text: str) -> None:
  """Sets an option by name; its value is checked with the others."""
  key, equals, value = text.partition("=")
  name, _, option = key.partition(".")
  if not equals or option not in operations.get(name, ()):
    known = [f"{n}.{o}" for n, options in operations.items() for o in options]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0)
    problem = f"there is no {key}" if equals else "it is NAME.OPTION=VALUE"
    raise UsageError(f"--set {text}: {problem}; perhaps {near[0]}=... is meant")
  try:
    operations[name][option] = ast.literal_eval(value)
  except (ValueError, SyntaxError) as error:
    raise UsageError(
      f"--set {text}: the value is no number, nor two with a comma"
    ) from error
  if problem := augment.problem_of(name, option, operations[name][option]):
    raise UsageError(f"--set {text}: {problem}")


def _draw(
  source: sources.Source,
  settings: Mapping[str, Any],
  scale: int,
  size: int,
  args: argparse.Namespace,
) -> np.ndarray:
  """The picture: a column an augmentation, two rows a pair."""
  out = console.make_console(stderr=True)

  def skip(problem):
    out.print(console.lines(f"left out: {problem}"))

  pairs = (pair for _, pair in sources.readable(source, skip))
  crops = samples.choose_crops(
    pairs, size=size, scale=scale, count=max(args.pairs, 2)
  )
  if not crops:
    raise ValueError(
      f"no photo that can be read is {size} pixels a side: choose a smaller"
      " --size, or others"
    )
  shown = min(args.pairs, len(crops))
  if len(crops) == 1:  # Its partner is itself, upside down.
    crops.append(sources.Pair(*(image[::-1] for image in crops[0])))
  batch = augment.to_float(
    {
      "lr": jax.numpy.stack([crop.lr for crop in crops]),
      "hr": jax.numpy.stack([crop.hr for crop in crops]),
    }
  )
  programs = {"as it is": {}}
  operations = settings["operations"]
  for name in augment.OPERATIONS:
    done = (*_BEFORE.get(name, ()), name)
    programs[name] = {n: operations[n] | {"probability": 1.0} for n in done}
  columns = {title: (chosen, False) for title, chosen in programs.items()}
  if any(each["probability"] for each in operations.values()):
    columns["in training"] = (operations, settings["one_of"])

  @jax.jit
  def transform(key, batch):
    return {
      title: augment.transform(key, batch, chosen, one_of=one_of)
      for title, (chosen, one_of) in columns.items()
    }

  done = jax.device_get(transform(jax.random.key(args.seed), batch))
  return samples.grid(
    {
      title: _rows(done[title], scale, shown)
      for title in columns  # A tree comes back in the order of its names.
    }
  )


def _rows(batch: Mapping[str, np.ndarray], scale: int, count: int):
  """LR and HR of each pair in turn, uint8 of one size."""
  levels = {
    name: np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)
    for name, images in batch.items()
  }
  rows = []
  for lr, hr in zip(levels["lr"][:count], levels["hr"][:count], strict=True):
    rows += [lr.repeat(scale, axis=0).repeat(scale, axis=1), hr]
  return rows
