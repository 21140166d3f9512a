"""Measures a model on a set of images: PSNR and SSIM, as papers do, and more.

  python -m esrgan_jax evaluate --model bicubic --hr Set5/HR --lr Set5/LRbicx4
  python -m esrgan_jax evaluate --model runs/mine --hr DIV2K_valid_HR
  python -m esrgan_jax evaluate --hr 'Set14/*_HR.png' --lr 'Set14/*_LR.png'
  python -m esrgan_jax evaluate --hr DIV2K_valid_HR --patch 512

Without --lr, LR is made from HR by MATLAB's bicubic imresize. Images belong
together by name; DIV2K's 0801x4.png belongs to 0801.png. Of patterns, which
need quotes, those belong together whose wildcards stand for the same, where no
name does. An image that cannot be read is reported, the others are measured,
and the exit status is 1.

With --patch, images are cut into squares, each upscaled and measured by itself;
what is left at the right and bottom is left out.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterable, Iterator

import numpy as np
import rich.cells
import rich.progress

from esrgan_jax import compilation, console, storage
from esrgan_jax.commands import arguments
from esrgan_jax.data import sources
from esrgan_jax.errors import UsageError
from esrgan_jax.evaluation import evaluator, measures
from esrgan_jax.models import registry
from esrgan_jax.text import printable
from esrgan_jax.upscaling import consistency, upscaler
from esrgan_jax.weights import find, zoo

_BICUBIC = "bicubic"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  parser.add_argument(
    "-m",
    "--model",
    default=zoo.DEFAULT,
    help="a name (see `python -m esrgan_jax models`), a weight file, a workdir"
    " or checkpoint folder of training, or `bicubic` (default: %(default)s)",
  )
  parser.add_argument(
    "--hr",
    required=True,
    metavar="DIR",
    help="folder of ground truth images, or a pattern in quotes; also a data"
    " set as in a config, such as div2k/bicubic_x4:validation, tfds:NAME:SPLIT"
    " or sample_photos:held_out",
  )
  parser.add_argument(
    "--lr",
    metavar="DIR",
    help="folder of their LR images, or a pattern in quotes",
  )
  parser.add_argument(
    "--data-dir",
    metavar="DIR",
    help="folder of prepared data sets (default: TFDS's own)",
  )
  parser.add_argument(
    "-s",
    "--scale",
    type=int,
    help="HR pixels per LR pixel (default: the model's; 4 for bicubic)",
  )
  parser.add_argument(
    "--crop-border",
    type=int,
    metavar="N",
    help="pixels cut off each side before measuring (default: the scale; 0 with"
    " --patch)",
  )
  parser.add_argument(
    "--patch",
    type=int,
    metavar="N",
    help="measure patches of N x N pixels of HR instead of whole images",
  )
  parser.add_argument(
    "--patch-step",
    type=int,
    metavar="N",
    help="pixels of HR from one patch to the next (default: --patch, so that"
    " none overlap)",
  )
  parser.add_argument(
    "--measures",
    metavar="A,B",
    default=",".join(measures.DEFAULT),
    help="what to measure, with commas between; also lpips, lpips_vgg, dists"
    " and niqe, see docs/measures.md (default: %(default)s)",
  )
  parser.add_argument(
    "--consistent",
    action="store_true",
    help="change results so that their downscaling is the LR image",
  )
  parser.add_argument(
    "--ensemble",
    action="store_true",
    help='average over the eight ways to turn and mirror LR, as papers\' "+"'
    " models do",
  )
  parser.add_argument(
    "--border",
    choices=("mirror", "clamp"),
    default="mirror",
    help="how LR is made at the edges of HR: mirror as current MATLAB and"
    " DIV2K, clamp as old MATLAB (default: %(default)s)",
  )
  arguments.add_precision(parser)
  arguments.add_max_pixels(parser)
  parser.add_argument(
    "--json", metavar="FILE", help="also write the numbers to FILE"
  )
  parser.add_argument(
    "--overwrite",
    action="store_true",
    help="replace FILE, if it holds such numbers",
  )


def run(args: argparse.Namespace) -> int:
  """Evaluates and prints; returns the exit status."""
  out = console.make_console()
  for name, value, least in (
    ("--scale", args.scale, 1),
    ("--crop-border", args.crop_border, 0),
  ):
    if value is not None and value < least:
      raise UsageError(f"{name} is {value}; it must be at least {least}")
  names = map(str.strip, args.measures.split(","))
  chosen = measures.choose(filter(None, names))
  if args.json:
    _check_json(args.json, args.overwrite)
  compilation.enable_compilation_cache(storage.cache_dir() / "xla")
  if args.model == _BICUBIC:
    if args.ensemble:
      raise UsageError(
        "--ensemble is for networks: bicubic is the same in all ways"
      )
    name, scale = _BICUBIC, args.scale or 4
    upscale = lambda lr: evaluator.bicubic(lr, scale=scale)  # noqa: E731
  else:
    with console.fetch_progress(args.model, quiet=False) as progress:
      found = find.find_model(
        args.model,
        scale=args.model_scale or args.scale,
        config=find.read_config(args.config),
        progress=progress,
      )
    notes = compilation.precision_notes(args.precision)
    for note in (*notes, *found.weights.notes):
      out.print(f"note: {note}")
    config = found.weights.config
    name, scale = found.name, config["scale"]
    find.check_scale(args.model, config, args.scale)
    dtype = compilation.compute_dtype(args.precision)
    upscale = upscaler.Upscaler(
      registry.make_generator(**config, dtype=dtype),
      found.weights.params,
      found.weights.collections,
      name=name,
    )
    if args.ensemble:
      upscale, name = upscale.with_ensemble(), f"{name}, ensemble"

  patches = _patches(args, scale)
  agreements: list[consistency.Agreement] = []
  if args.consistent:
    upscale, name = _consistent(upscale, agreements), f"{name}, consistent"
  source = sources.open_source(
    {"hr": args.hr, "lr": args.lr} if args.lr else args.hr,
    scale=scale,
    data_dir=args.data_dir,
    border=args.border,
    max_pixels=args.max_pixels,
  )
  sources.require_hr(source, "--hr")
  for problem in source.problems:
    out.print(f"note: {problem.name} is left out: {problem.reason}")
  began = time.perf_counter()
  unread: list[sources.Problem] = []
  small: list[sources.Problem] = []
  try:
    with _progress() as bar:
      task = bar.add_task(name, total=len(source))

      def pairs() -> Iterator[evaluator.NamedPair]:
        for index, pair in sources.readable(source, unread.append):
          bar.update(task, completed=index)
          H, W, _ = pair.hr.shape
          if patches and min(H, W) < patches.size:
            reason = f"HR is {H}x{W}, smaller than a patch"
            small.append(sources.Problem(source.names[index], reason))
          else:
            yield evaluator.NamedPair(source.names[index], *pair)

      result = evaluator.evaluate_pairs(
        upscale,
        pairs(),
        scale=scale,
        crop_border=args.crop_border,
        model=name,
        measures=chosen,
        patches=patches,
      )
  finally:
    err = console.make_console(stderr=True)
    for problem in unread:
      err.print(f"error: {printable(problem.name)}: {problem.reason}")
    for problem in small:
      out.print(
        f"note: {printable(problem.name)} is left out: {problem.reason}"
      )
  seconds = time.perf_counter() - began
  out.print(f"{name} on {args.hr}, LR {source.lr_origin}")
  out.print(result.protocol)
  for line in _table(result, out.width if out.is_terminal else None):
    out.print(line)
  if agreements:
    before, after = (
      max(getattr(each, when) for each in agreements)
      for when in ("before", "after")
    )
    out.print(
      f"downscaled, results were up to {before:.1f} of 255 levels from LR, and"
      f" are up to {after:.1f}"
    )
  total = len(source) - len(small)
  count = total - len(unread)
  cuts = len(result.scores)
  cut = f"{cuts} patch{'es' * (cuts != 1)} of " if patches else ""
  which = f" of {total}" if unread else ""
  means = "; the means are of these" if unread else ""
  out.print(
    f"{cut}{count}{which} image{'s' * (total != 1)} in {seconds:.1f} s{means}"
  )
  if args.json:
    evaluator.write_evaluations(args.json, [result], overwrite=args.overwrite)
    out.print(args.json)
  return int(bool(unread))


def _patches(args: argparse.Namespace, scale: int) -> evaluator.Patches | None:
  """Returns how images are cut, if they are."""
  size, step = args.patch, args.patch_step
  if size is None:
    if step is not None:
      raise UsageError("--patch-step is of patches; give --patch N as well")
    return None
  least = evaluator.smallest_side(args.crop_border or 0)
  for name, value, fewest in (
    ("--patch", size, least),
    ("--patch-step", size if step is None else step, 1),
  ):
    multiple = max(fewest + -fewest % scale, value - value % scale)
    if value != multiple:
      raise UsageError(
        f"{name} is {value}; it must be a multiple of the scale {scale}, and at"
        f" least {fewest}: {multiple} is"
      )
  return evaluator.Patches(size, size if step is None else step)


def _consistent(
  upscale: evaluator.Upscale | upscaler.Upscaler,
  agreements: list[consistency.Agreement],
) -> evaluator.Upscale:
  if isinstance(upscale, upscaler.Upscaler):
    upscale = upscale.upscale

  def run(lr: np.ndarray) -> np.ndarray:
    sr = upscale(lr)
    agreements.append(consistency.make_consistent(sr, lr))
    return sr

  return run


def _check_json(path: str, overwrite: bool) -> None:
  """Raises if the numbers cannot be written, or would replace anything else."""
  storage.check_output(path, overwrite=overwrite)
  found = storage.absolute(path)
  if found.exists():
    with found.open("rb") as file:
      start = file.read(100)
    if not re.match(rb'\s*\{\s*"evaluations"', start):
      raise FileExistsError(
        f"{path} holds no such numbers, and is not replaced; choose another"
        " name"
      )


def _progress() -> rich.progress.Progress:
  """Returns a bar on stderr, or none where that is no terminal."""
  err = console.make_console(stderr=True)
  return rich.progress.Progress(
    console.TextColumn("{task.description}"),
    rich.progress.BarColumn(),
    rich.progress.MofNCompleteColumn(),
    rich.progress.TimeRemainingColumn(),
    console=err,
    transient=True,
    disable=not err.is_terminal,
  )


def _table(result: evaluator.Evaluation, room: int | None) -> list[str]:
  """Returns a heading, a line an image, and the means; names are cut to fit."""
  rows = [*result.scores, evaluator.Score("mean", result.means)]
  columns = [measures.find(name) for name in result.means]
  sizes = [max(len(each.heading), 9) for each in columns]
  most = 200 if room is None else max(room - sum(sizes) - len(sizes), 12)
  names = [printable(row.name, limit=most) for row in rows]
  width = min(max(map(rich.cells.cell_len, names)), most)

  def line(first: str, cells: Iterable[str]) -> str:
    numbers = map(str.rjust, cells, sizes)
    return " ".join([rich.cells.set_cell_size(first, width), *numbers])

  return [
    line("", (each.heading for each in columns)),
    *(
      line(name, (each.show(row.values[each.name]) for each in columns))
      for name, row in zip(names, rows, strict=True)
    ),
  ]
