"""Makes images and clips larger.

  python -m esrgan_jax upscale photo.jpg                  -> photo_x4.jpg
  python -m esrgan_jax upscale photo.jpg -o large.png     -> large.png
  python -m esrgan_jax upscale holiday/ *.png -o large/   -> large/*, same names
  python -m esrgan_jax upscale clip.mp4                   -> clip_x4.mp4

Depth, grey, transparency, colour profile, metadata, frames and pages are kept
where the format of the result has them; of clips, all that is no picture. A
file that cannot be read or written is reported, the others are done, and the
exit status is 1. docs/upscale.md has each option with a command, docs/video.md
tells of clips.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import itertools
import os
import pathlib
import re
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import rich.progress

from esrgan_jax import compilation, console, images, storage, video
from esrgan_jax.commands import arguments, upscale_on_ray
from esrgan_jax.errors import UsageError
from esrgan_jax.text import explain, printable
from esrgan_jax.upscaling import (
  clips,
  files,
  names,
  pieces,
  pipes,
  record,
  upscaler,
)
from esrgan_jax.upscaling import plan as plan_
from esrgan_jax.upscaling.inputs import Input, find_inputs
from esrgan_jax.upscaling.result_size import ResultSize
from esrgan_jax.weights import find, mixing, zoo

_FORMATS = [
  suffix[1:]
  for suffix in (
    *images.OUTPUT_SUFFIXES,
    *(s for s in images.ANIMATION_SUFFIXES if s not in images.OUTPUT_SUFFIXES),
    ".zarr",
    *video.OUTPUT_SUFFIXES,
  )
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  parser.add_argument(
    "inputs",
    nargs="+",
    metavar="INPUT",
    help="image or clip, folder of such, or pattern; - is standard input",
  )
  parser.add_argument(
    "-r",
    "--recursive",
    action="store_true",
    help="take images of subfolders as well; results keep the tree below OUT",
  )
  parser.add_argument(
    "-o",
    "--output",
    metavar="OUT",
    help="a file for one image, a folder for several, - for standard output;"
    " without it, results lie beside their inputs as NAME_x4.SUFFIX",
  )
  parser.add_argument(
    "--suffix",
    type=_template,
    metavar="TEXT",
    help="what a result's name ends with (default: _x4 or the like beside an"
    " input, nothing in OUT); fields as for --name",
  )
  parser.add_argument(
    "--name",
    type=_name,
    metavar="TEMPLATE",
    help="a result's name, with fields"
    f" {' '.join(f'{{{field}}}' for field in names.FIELDS)}"
    " (default: {name}{suffix})",
  )
  parser.add_argument(
    "-m",
    "--model",
    default=zoo.DEFAULT,
    help="a name (see `python -m esrgan_jax models`), a weight file, a workdir"
    " or checkpoint of training (default: %(default)s)",
  )
  parser.add_argument(
    "--psnr-model",
    metavar="MODEL",
    help="one of the same structure, trained for PSNR, that --model was begun"
    " from: the result is that of (1 - ALPHA) * MODEL + ALPHA * --model, weight"
    " by weight",
  )
  parser.add_argument(
    "--alpha",
    type=_alpha,
    help="share of --model, with --psnr-model: less is more faithful, with less"
    f" detail (default: {mixing.DEFAULT_ALPHA})",
  )
  parser.add_argument(
    "--denoise",
    type=_denoise,
    metavar="STRENGTH",
    help="of general-x4v3, how much noise is taken away: 1 is the model, 0 is"
    " general-wdn-x4v3, which keeps noise, and between them is STRENGTH *"
    " general-x4v3 + (1 - STRENGTH) * general-wdn-x4v3, weight by weight, as"
    " with Real-ESRGAN's -dn (default: 1)",
  )
  parser.add_argument(
    "-s",
    "--scale",
    type=_scale,
    help="size of the result over that of the image, e.g. 2 or 1.5; other than"
    " the model's, the result is resized at the end (Lanczos)",
  )
  for name, what in {
    "width": "pixels of the result; with --height, a frame that it fits into",
    "height": "pixels of the result, likewise",
    "long-side": "likewise, of the longer side, whichever that is",
    "short-side": "likewise, of the shorter side",
  }.items():
    parser.add_argument(
      f"--{name}", type=_positive, metavar="PIXELS", help=what
    )
  parser.add_argument(
    "--only-smaller",
    action="store_true",
    help="leave alone images that are as large as the result would be",
  )
  parser.add_argument(
    "-f",
    "--format",
    type=lambda text: text.lower().removeprefix("."),
    choices=_FORMATS,
    metavar="FORMAT",
    help=f"format of results that OUT doesn't name: {', '.join(_FORMATS)}"
    " (default: as the input); gif and apng are for animations only, and those"
    " of clips decide on clips alone, as the others do on images",
  )
  parser.add_argument(
    "--quality",
    type=_quality,
    default=95,
    help="of JPEG, WebP, AVIF, JPEG XL and JPEG 2000, and of clips, 1 to 100"
    " (default: %(default)s)",
  )
  parser.add_argument(
    "--lossless",
    action="store_true",
    help="keep every sample: WebP, AVIF, JPEG XL and JPEG 2000 without loss,"
    " PNG instead of an input's JPEG, FFV1 in .mkv of clips",
  )
  parser.add_argument(
    "--codec",
    choices=("auto", *video.CODECS),
    default="auto",
    help="of clips (default: the clip's, where that is one of these and fits)",
  )
  parser.add_argument(
    "--tile",
    type=_tile,
    default="auto",
    help="side of a tile in pixels of the input; auto: the largest that fits"
    " into memory; 0: do not tile (default: %(default)s)",
  )
  overlap = parser.add_mutually_exclusive_group()
  overlap.add_argument(
    "--exact",
    action="store_true",
    help="make tiles overlap as far as the network looks: the result equals"
    " that of the whole image to rounding, at many times the cost",
  )
  overlap.add_argument(
    "--halo",
    type=arguments.natural,
    help="pixels of the input around a tile; less is faster and leaves seams"
    " (default: at most half a level of 255 from no tiling, docs/tiling.md)",
  )
  edges = parser.add_mutually_exclusive_group()
  for direction, what in {
    "both": "for textures, all of whose edges meet: they do so in the result",
    "horizontal": "for panoramas of 360 degrees: left and right edge meet",
    "vertical": "top and bottom edge meet",
  }.items():
    name = "--seamless" if direction == "both" else f"--seamless-{direction}"
    edges.add_argument(
      name, action="store_const", dest="seamless", const=direction, help=what
    )
  parser.add_argument(
    "--consistent",
    action="store_true",
    help="change the result so that, downscaled, it is the image again: colours"
    " and brightness cannot drift",
  )
  parser.add_argument(
    "--ensemble",
    action="store_true",
    help="average over the eight ways to turn and mirror the image, as papers'"
    ' "+" models do: a little nearer to the truth, in eight times the time',
  )
  arguments.add_precision(parser)
  existing = parser.add_mutually_exclusive_group()
  existing.add_argument(
    "--overwrite", action="store_true", help="replace existing results"
  )
  existing.add_argument(
    "--skip-existing", action="store_true", help="leave out what is done"
  )
  arguments.add_max_pixels(
    parser, refused="results of more than 16 times as many"
  )
  parser.add_argument(
    "--pieces",
    choices=pieces.MODES,
    default="auto",
    help="read, upscale and write TIFF in pieces, and go on where an earlier"
    " run was stopped; auto: images that outgrow memory (docs/gigapixel.md)"
    " (default: %(default)s)",
  )
  parser.add_argument(
    "--background",
    type=_colour,
    metavar="COLOUR",
    help="what lies behind transparency, where the format has none: a name of"
    " CSS such as white, or #rrggbb",
  )
  parser.add_argument(
    "--no-record",
    action="store_true",
    help="leave out of the results how they were made",
  )
  parser.add_argument(
    "-n",
    "--dry-run",
    action="store_true",
    help="say what would be done, by the images' headers, and do nothing",
  )
  parser.add_argument(
    "-q", "--quiet", action="store_true", help="print errors only"
  )
  upscale_on_ray.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
  """Upscales all inputs; returns the exit status."""
  if args.alpha is not None and args.psnr_model is None:
    raise UsageError(
      f"--alpha {args.alpha:g} is the share of --model in a mixture; say with"
      " --psnr-model what it is mixed with"
    )
  if args.denoise is not None:
    if args.psnr_model is not None:
      raise UsageError(
        "--denoise and --psnr-model both say what --model is mixed with; give"
        " one of them"
      )
    zoo.weak_denoise(args.model)  # Raises where there is none.
  if args.engine == "ray":
    report = _Report(quiet=args.quiet, to_stdout=False, hidden=None)
    return upscale_on_ray.run(args, report, _prepare)
  upscale_on_ray.check_unused(args)
  piped = [text for text in args.inputs if pipes.is_pipe(text)]
  if sum(map(pipes.is_stdin, piped)) > 1:
    raise UsageError("standard input is one image, and was given twice")
  to_stdout = pipes.is_stdout(args.output)
  if piped and args.output is None:
    if len(args.inputs) > 1:
      raise UsageError(f"{piped[0]} has no name for its result; give -o")
    to_stdout = True
  if to_stdout:
    pipes.check_stdout()
  with contextlib.ExitStack() as stack:
    # Of its own permissions: what comes through a pipe is nobody else's.
    folder = None
    if piped or to_stdout:
      folder = stack.enter_context(storage.temporary_folder())
    report = _Report(quiet=args.quiet, to_stdout=to_stdout, hidden=folder)
    inputs = _collect(args, report, folder)
    if not inputs:
      return 1
    return _run(args, inputs, report, folder if to_stdout else None)


def _run(
  args: argparse.Namespace,
  inputs: Sequence[Input],
  report: _Report,
  for_stdout: pathlib.Path | None,
) -> int:
  """Upscales what was found; for standard output, into a folder first."""
  if for_stdout:
    if len(inputs) > 1:
      raise UsageError(
        f"{len(inputs)} inputs cannot go to standard output; give a folder"
      )
    folder, file = for_stdout / "result", None
  else:
    folder, file = names.output_of(args.output, len(inputs))
  if file:
    storage.check_output(
      file,
      overwrite=args.overwrite or args.skip_existing,
      inputs=storage.file_ids([each.path for each in inputs]),
    )
  _size(args)  # Raises if it cannot be meant.
  if args.psnr_model is not None:
    with contextlib.suppress(zoo.ModelNotFoundError):  # It can be fetched.
      find.locate(args.psnr_model, fetch=False)
  loaded, scale = None, _known_scale(args)
  if scale is None:
    loaded = _load(args, report)
    scale = loaded.model.scale
  name = loaded.model.name if loaded else args.model
  naming = _naming(args, name, scale, file, folder)
  plan = plan_.make_plan(
    inputs,
    naming,
    overwrite=args.overwrite,
    skip_existing=args.skip_existing,
    only_smaller=args.only_smaller,
    consistent=args.consistent,
    seamless=args.seamless,
    in_pieces=args.pieces,
    max_pixels=args.max_pixels,
    others=[args.model, *filter(None, [args.psnr_model])],
  )
  for job in plan.jobs:
    if for_stdout and job.each:
      raise UsageError(
        f"{job.frames} files, one a frame, cannot go to standard output; give a"
        " folder, or another --format"
      )
  _tell(plan, report)
  if args.dry_run:
    _say_what_would_be_done(
      plan.jobs,
      naming,
      _settings(args, loaded),
      report,
      send=for_stdout is not None,
    )
    _tell_room(plan.jobs, naming, report)
    return report.status
  if not plan.jobs:
    return report.status
  _tell_room(plan.jobs, naming, report)
  loaded = loaded or _load(args, report)
  settings = _settings(args, loaded)
  _upscale(loaded, plan.jobs, settings, report, send=for_stdout is not None)
  return report.status


def _settings(
  args: argparse.Namespace, loaded: _Loaded | None
) -> files.Settings:
  """Returns what is wanted; without a model, there is no record of it."""
  is_told = loaded and not args.no_record
  return files.Settings(
    size=_size(args),
    tile=args.tile,
    exact=args.exact,
    halo=args.halo,
    seamless=args.seamless,
    consistent=args.consistent,
    quality=args.quality,
    lossless=args.lossless,
    codec=args.codec,
    background=args.background,
    record=_record(loaded, args) if is_told else None,
    max_pixels=args.max_pixels,
    overwrite=args.overwrite,
    pieces=args.pieces,
  )


def _naming(
  args: argparse.Namespace,
  name: str,
  scale: int,
  file: pathlib.Path | None = None,
  folder: pathlib.Path | None = None,
) -> names.Naming:
  return names.Naming(
    model=name,
    model_scale=scale,
    alpha=_share(args),
    size=_size(args),
    file=file,
    folder=folder,
    template=args.name,
    suffix=args.suffix,
    format=args.format,
    lossless=args.lossless,
  )


def _prepare(
  args: argparse.Namespace, report: _Report
) -> tuple[upscaler.Upscaler, names.Naming, files.Settings]:
  """Returns the model, and what is wanted of images that others upscale."""
  loaded = _load(args, report)
  model = loaded.model
  naming = _naming(args, model.name, model.scale)
  return model, naming, _settings(args, loaded)


class _Loaded(NamedTuple):
  """A model, and how it was mixed, as records and people are told."""

  model: upscaler.Upscaler
  mixed: tuple[str, ...] = ()


def _upscale(
  loaded: _Loaded,
  jobs: Sequence[files.Job],
  settings: files.Settings,
  report: _Report,
  *,
  send: bool,
) -> None:
  """Upscales images, then clips, and tells of each."""
  started = time.perf_counter()
  done = collections.Counter()
  pixels = 0
  films = [job for job in jobs if job.is_clip]
  pictures = [job for job in jobs if not job.is_clip]
  model = loaded.model
  with (
    report.progress([*pictures, *films]) as bar,
    contextlib.closing(
      files.upscale_files(
        model, pictures, settings, progress=bar.tiles, tell=report.say
      )
    ) as images_done,
    contextlib.closing(
      clips.upscale_clips(model, films, settings, progress=bar.frames)
    ) as clips_done,
  ):
    for job, outcome in itertools.chain(images_done, clips_done):
      name = printable(job.source)
      if send and isinstance(outcome, files.Done):
        outcome = _sent(job, outcome)
      if isinstance(outcome, files.Done):
        done["clip" if job.is_clip else "image"] += 1
        pixels += outcome.pixels
        for note in outcome.notes:
          report.say(f"{name}: {note}")
        target = "-" if send else job.target
        frames = f"{outcome.frames} of " if outcome.frames > 1 else ""
        size = _sides(outcome.width, outcome.height, varied=outcome.varied)
        report.say(f"{target}  {frames}{size}, {outcome.seconds:.1f} s")
      elif os.environ.get("ESRGAN_JAX_TRACEBACK"):
        raise outcome
      else:
        reason = explain(outcome)
        report.fail(reason if name in reason else f"{name}: {reason}")
      bar.finish(job)
  seconds = time.perf_counter() - started
  device = jax.local_devices()[0].device_kind
  failed = f"; {report.failures} failed" if report.failures else ""
  model = ", ".join([loaded.model.name, *loaded.mixed])
  report.say(
    f"{_counts(done)}, {pixels / 1e6:.1f} megapixels in {seconds:.1f} s"
    f" with {model} on {device}{failed}"
  )


def _sent(job: files.Job, done: files.Done) -> files.Done | OSError:
  """Sends a result to standard output; returns why not, if it is not there."""
  try:
    pipes.send(job.target)
  except BrokenPipeError:
    raise
  except OSError as error:
    return error
  return done


def _sides(width: int, height: int, *, varied: bool) -> str:
  """Says a size; of several pictures, that of the first."""
  return f"{width} x {height}{' and other sizes' if varied else ''}"


def _collect(
  args: argparse.Namespace, report: _Report, folder: pathlib.Path | None
) -> list[Input]:
  """Returns the images that are meant, and tells of what is not."""
  texts = []
  for number, text in enumerate(args.inputs):
    if not pipes.is_pipe(text):
      texts.append(text)
      continue
    try:
      own = folder / str(number) if number else folder
      own.mkdir(exist_ok=True)
      texts.append(str(pipes.receive(text, own)))
    except (OSError, ValueError) as error:
      report.fail(explain(error))
  inputs = find_inputs(
    texts, recursive=args.recursive, results=args.output or None
  )
  for note in inputs.notes:
    report.say(f"note: {note}")
  for problem in inputs.problems:
    report.fail(problem)
  return list(inputs.found)


def _known_scale(args: argparse.Namespace) -> int | None:
  """Returns the model's scale if its name tells."""
  if args.model_scale is None and args.config is None:
    with contextlib.suppress(ValueError):
      return zoo.get(args.model).scale
  if not args.dry_run:
    return None
  config = find.read_config(args.config)
  found = find.find_model(
    args.model, scale=args.model_scale, config=config, fetch=False
  )
  return found.weights.config["scale"]


def _share(args: argparse.Namespace) -> float:
  """Of --model, in what upscales."""
  if args.denoise is not None:
    return args.denoise
  if args.psnr_model is None:
    return 1.0
  return mixing.DEFAULT_ALPHA if args.alpha is None else args.alpha


def _load(args: argparse.Namespace, report: _Report) -> _Loaded:
  compilation.enable_compilation_cache(storage.cache_dir() / "xla")
  shown = functools.partial(console.fetch_progress, quiet=args.quiet)
  asked = {
    "scale": args.model_scale,
    "config": find.read_config(args.config),
  }
  alpha = _share(args)
  mixed = () if args.denoise is None else (f"denoise={alpha:.12g}",)
  if args.psnr_model is None and alpha == 1:
    with shown(args.model) as progress:
      model = upscaler.load(
        args.model, dtype=args.precision, progress=progress, **asked
      )
  elif args.psnr_model is None:
    pair = mixing.find_denoising_pair(args.model, progress=shown, **asked)
    model = upscaler.load_mixture(pair, alpha, dtype=args.precision)
  else:
    pair = mixing.find_pair(
      args.psnr_model, args.model, progress=shown, **asked
    )
    model = upscaler.load_mixture(pair, alpha, dtype=args.precision)
    mixed = f"psnr_model={pair.first.name}", f"alpha={alpha:.12g}"
  for note in (*compilation.precision_notes(args.precision), *model.notes):
    report.say(f"note: {note}")
  return _Loaded(model.with_ensemble() if args.ensemble else model, mixed)


def _record(loaded: _Loaded, args: argparse.Namespace) -> str:
  """Returns a line on how results are made, for whoever finds them."""
  told = ("tile", "exact", "halo", "seamless", "consistent", "ensemble")
  return record.describe(
    loaded.model,
    mixed=loaded.mixed,
    size=_size(args),
    **{name: getattr(args, name) for name in (*told, "precision")},
  )


def _size(args: argparse.Namespace) -> ResultSize:
  rules = ("scale", "width", "height", "long_side", "short_side")
  try:
    return ResultSize(**{name: getattr(args, name) for name in rules})
  except ValueError as error:
    given = [f"--{name.replace('_', '-')}" for name in rules]
    raise UsageError(
      f"{error}: give one of {', '.join(given)}; or --width and --height, a"
      " frame that the result fits into"
    ) from None


def _tell(plan: plan_.Plan, report: _Report) -> None:
  """Tells of the images that have no job."""
  for path in plan.existing:
    report.say(f"{path}  exists, skipped")
  for path in plan.large:
    report.say(f"{path}  is large enough, left alone")
  if plan.earlier:
    first = printable(plan.earlier[0])
    others = len(plan.earlier) - 1
    more = f" and {_count(others, 'other')}" if others else ""
    what = "results of other inputs" if others else "a result of another input"
    report.say(f"note: left out {first}{more}: {what}")
  for problem in plan.problems:
    report.fail(problem)


def _say_what_would_be_done(
  jobs: Sequence[files.Job],
  naming: names.Naming,
  settings: files.Settings,
  report: _Report,
  *,
  send: bool,
) -> None:
  """Tells what would be made of what, by the headers of images and clips."""
  count = collections.Counter()
  total = 0
  for job in jobs:
    target = "-" if send else job.target
    notes: Sequence[str] = ()
    try:
      if job.is_clip:
        clip, encoding, notes = clips.check_clip(
          job, settings=settings, scale=naming.model_scale
        )
      elif not images.is_zarr(job.source):
        images.check_head(job.source, max_pixels=settings.max_pixels)
      if job.size is None:
        count["image"] += 1
        report.say(f"{job.source} -> {target}  its header tells no size")
        continue
      result = _result_sizes(job, naming)[0]
      if job.is_clip:
        result = encoding.shown_size(clip)[::-1]
        doubt = f", {encoding.codec}"
      else:
        doubt = "" if job.pieces else _check_fits(job, result, settings)
    except ValueError as error:
      report.fail(explain(error))
      continue
    count["clip" if job.is_clip else "image"] += 1
    total += _result_pixels(job, naming)
    frames = f"{job.frames} of " if job.frames > 1 else ""
    varied = bool(job.sizes)
    if job.pieces:
      doubt += ", in pieces"
    elif job.whole:
      doubt += f", not in pieces: {job.whole}"
    report.say(
      f"{job.source} -> {target}  {frames}{_sides(*job.size, varied=varied)} ->"
      f" {_sides(*result[::-1], varied=varied)}{doubt}"
    )
    for note in notes:
      report.say(f"{printable(job.source)}: {note}")
  if count["clip"]:
    free = storage.free_bytes(next(j for j in jobs if j.is_clip).target.parent)
    report.say(
      f"note: {free / 1e6:.0f} MB are free there; of a clip, what is encoded"
      " lies there twice while it is joined"
    )
  report.say(
    f"{_counts(count)}, {total / 1e6:.1f} megapixels; nothing was done"
  )


def _check_fits(
  job: files.Job, size: tuple[int, int], settings: files.Settings
) -> str:
  """Raises if the format cannot hold the result; returns what is in doubt."""
  if job.frames > 1 and not job.each:
    return ""
  target, known = job.targets[0], None
  if job.frames == 1:
    known = images.read_channels(job.source)
  channels, alpha = ((known[0],), known[1]) if known else ((1, 3), True)

  def refused(count: int, *, transparent: bool) -> ValueError | None:
    try:
      images.check_fits(
        target,
        (*size, count),
        transparent=transparent,
        lossless=settings.lossless,
      )
    except images.ImageError as error:
      return error
    return None

  errors = [refused(count, transparent=False) for count in channels]
  if all(errors):
    raise errors[0]
  doubts = ["it is grey"] if any(errors) else []
  if (
    alpha and not settings.background and refused(channels[0], transparent=True)
  ):
    doubts.append("nothing of it is transparent")
  return f", if {' and '.join(doubts)}" if doubts else ""


def _tell_room(
  jobs: Sequence[files.Job], naming: names.Naming, report: _Report
) -> None:
  """Tells if results might have no room."""
  total = 3 * sum(
    _result_pixels(job, naming) for job in jobs if job.size and not job.is_clip
  )
  if total and (free := storage.free_bytes(jobs[0].target.parent)) < total:
    report.say(
      f"note: {free / 1e6:.0f} MB are free there, and results have"
      f" {total / 1e6:.0f} MB before compression"
    )


def _result_sizes(
  job: files.Job, naming: names.Naming
) -> list[tuple[int, int]]:
  """Returns height and width of a job's results, by its header.

  Of a clip it is that of a frame: how many it has, a stranger has written.
  """
  frames = 1 if job.is_clip else job.frames
  sizes = (job.size, *(job.sizes[1:] or (job.size,) * (frames - 1)))
  return [
    naming.size.of(size[::-1], model_scale=naming.model_scale) for size in sizes
  ]


def _result_pixels(job: files.Job, naming: names.Naming) -> int:
  times = job.frames if job.is_clip else 1
  return times * sum(H * W for H, W in _result_sizes(job, naming))


def _counts(done: collections.Counter[str]) -> str:
  """Says how many images and clips; images also if there is neither."""
  kinds = [kind for kind in ("image", "clip") if done[kind]] or ["image"]
  return ", ".join(_count(done[kind], kind) for kind in kinds)


def _count(number: int, what: str) -> str:
  return f"{number} {what}{'' if number == 1 else 's'}"


def _scale(text: str) -> float:
  with contextlib.suppress(ValueError):
    if 0.01 <= (value := float(text)) <= 64:
      return value
  raise argparse.ArgumentTypeError(f"{text} is no number from 0.01 to 64")


def _alpha(text: str) -> float:
  try:
    return mixing.read_alpha(text)
  except ValueError as error:
    raise argparse.ArgumentTypeError(str(error)) from error


def _denoise(text: str) -> float:
  try:
    strength = float(text)
    mixing.check_denoise(strength)
  except ValueError as error:
    raise argparse.ArgumentTypeError(
      f"{text} is not a strength between 0, which keeps noise, and 1"
    ) from error
  return strength


def _quality(text: str) -> int:
  if not (text.strip().isdecimal() and 1 <= int(text) <= 100):
    raise argparse.ArgumentTypeError(f"{text} is no whole number, 1 to 100")
  return int(text)


def _tile(text: str) -> int | str:
  return text if text == "auto" else arguments.natural(text)


def _positive(text: str) -> int:
  if not (text.strip().isdecimal() and 1 <= int(text) < 2**31):
    raise argparse.ArgumentTypeError(f"{text} is not a number of pixels")
  return int(text)


def _colour(text: str) -> str:
  try:
    images.parse_colour(text)
  except ValueError as error:
    raise argparse.ArgumentTypeError(str(error)) from error
  return text


def _template(text: str) -> str:
  try:
    return names.check_template(text)
  except ValueError as error:
    raise argparse.ArgumentTypeError(str(error)) from error


def _name(text: str) -> str:
  if not _template(text).strip("./ "):
    raise argparse.ArgumentTypeError(f"'{text}' is no name")
  return text


class _Report:
  """What is said: of results on stdout, of errors on stderr, above the bar."""

  def __init__(
    self, *, quiet: bool, to_stdout: bool, hidden: pathlib.Path | None
  ):
    self._err = console.make_console(stderr=True)
    self._out = self._err if to_stdout else console.make_console()
    self._quiet = quiet
    self._hidden = hidden
    self._bar: _Progress | None = None
    self.failures = 0

  @property
  def status(self) -> int:
    """The exit status by now."""
    return int(self.failures > 0)

  def say(self, message: str) -> None:
    """Says what is as it should be, unless that is not wanted."""
    if not self._quiet:
      self._print(self._out, message)

  def fail(self, message: str) -> None:
    """Says what went wrong, and counts it."""
    self.failures += 1
    self._print(self._err, f"error: {message}")

  @contextlib.contextmanager
  def progress(self, jobs: Sequence[object]) -> Iterator[_Progress]:
    """Yields a bar below what is said.

    Args:
      jobs: What is to be done; each tells of its `work`.
    """
    with _Progress(jobs, self._err, disable=self._quiet) as self._bar:
      yield self._bar
    self._bar = None

  def _print(self, where: console.Console, message: str) -> None:
    # A folder for what goes through pipes is nobody's business.
    if self._hidden:
      own = re.escape(f"{self._hidden}{os.sep}")
      message = re.sub(rf"{own}(\d+{os.sep})?", "", message)
    aside = self._bar.aside() if self._bar else contextlib.nullcontext()
    with aside:
      where.print(message)


class _Progress:
  """One bar over all images, weighted by their pixels, with the time left."""

  def __init__(
    self,
    jobs: Sequence[files.Job],
    err: console.Console,
    *,
    disable: bool,
  ):
    self._bar = rich.progress.Progress(
      console.TextColumn("{task.description}"),
      rich.progress.BarColumn(),
      rich.progress.TaskProgressColumn(),
      rich.progress.TimeRemainingColumn(),
      console=err,
      transient=True,
      redirect_stdout=False,
      redirect_stderr=False,
    )
    # Of a line, the bar and the numbers take about 55 columns.
    self._room = max(err.width - 75, 12)
    self._shown = err.is_terminal and not err.is_dumb_terminal and not disable
    self._count = len(jobs)
    self._total = sum(job.work for job in jobs)
    self._parts: dict[files.Job, int] = {}
    self._done = self.finished = 0

  def __enter__(self) -> _Progress:
    self._task = self._bar.add_task("compiling", total=self._total or None)
    if self._shown:
      self._bar.start()
    return self

  def __exit__(self, *_: object) -> None:
    if self._shown:
      self._bar.stop()

  @contextlib.contextmanager
  def aside(self) -> Iterator[None]:
    """Makes room for a line, be it on stdout or on stderr."""
    if self._shown:
      self._bar.stop()
    try:
      yield
    finally:
      if self._shown:
        self._bar.start()

  def tiles(self, job: files.Job, done: int, total: int) -> None:
    """Shows how many tiles of an image are done."""
    self._show(job, "tile", done, total)

  def frames(self, job: files.Job, done: int, total: int) -> None:
    """Shows how many frames of a clip are done."""
    self._show(job, "frame", done, total)

  def _show(self, job: files.Job, what: str, done: int, total: int) -> None:
    self._move(job, job.work * done // max(total, 1))
    count = f"{self.finished + 1}/{self._count} " if self._count > 1 else ""
    name = printable(job.source.name, limit=self._room)
    self._bar.update(
      self._task,
      completed=self._done,
      description=f"{count}{name} {what} {done}/{total}",
    )

  def tell(self, description: str) -> None:
    """Says what is going on."""
    self._bar.update(self._task, description=description)

  def finish(self, job: files.Job) -> None:
    """Counts an image as done, whatever became of it."""
    self.finished += 1
    self._move(job, job.work)
    self._bar.update(self._task, completed=self._done)

  def _move(self, job: files.Job, pixels: int) -> None:
    self._done += pixels - self._parts.get(job, 0)
    self._parts[job] = pixels
