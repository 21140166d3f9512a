"""Makes images larger.

  python -m esrgan_jax upscale photo.jpg                  -> photo_x4.jpg
  python -m esrgan_jax upscale photo.jpg -o large.png     -> large.png
  python -m esrgan_jax upscale holiday/ *.png -o large/   -> large/*, same names

Reads and writes PNG, JPEG, WebP, TIFF and BMP, 8 and 16 bit, grey, colour and
transparency; keeps colour profile and EXIF. A file that cannot be read or
written is reported, the others are done, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import glob
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import rich.progress

from esrgan_jax import compilation, console, images, storage
from esrgan_jax.text import explain, printable
from esrgan_jax.upscaling import files, upscaler
from esrgan_jax.upscaling.result_size import ResultSize
from esrgan_jax.weights import find, zoo


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  parser.add_argument(
    "inputs", nargs="+", metavar="INPUT", help="image, folder of images or glob"
  )
  parser.add_argument(
    "-o",
    "--output",
    metavar="OUT",
    help="a file for one image, a folder for several; without it, results lie"
    " beside their inputs as NAME_x4.SUFFIX",
  )
  parser.add_argument(
    "-m",
    "--model",
    default=zoo.DEFAULT,
    help="a name (see `python -m esrgan_jax models`), a weight file, a workdir"
    " or checkpoint of training (default: %(default)s)",
  )
  parser.add_argument(
    "-s",
    "--scale",
    type=_scale,
    help="size of the result over that of the image, e.g. 2 or 1.5; other than"
    " the model's, the result is resized at the end (Lanczos)",
  )
  parser.add_argument(
    "-f",
    "--format",
    choices=("png", "jpg", "webp", "tiff", "bmp"),
    help="format of results that OUT doesn't name (default: as the input)",
  )
  parser.add_argument(
    "--quality",
    type=_quality,
    default=95,
    help="of JPEG and WebP, 1 to 100 (default: %(default)s)",
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
    type=_natural,
    help="pixels of the input around a tile; less is faster and leaves seams"
    " (default: at most half a level of 255 from no tiling, docs/tiling.md)",
  )
  parser.add_argument(
    "--precision",
    choices=("auto", "float32", "bfloat16"),
    default="auto",
    help="auto: bfloat16 on GPU and TPU, float32 on CPU (default: auto)",
  )
  existing = parser.add_mutually_exclusive_group()
  existing.add_argument(
    "--overwrite", action="store_true", help="replace existing results"
  )
  existing.add_argument(
    "--skip-existing", action="store_true", help="leave out what is done"
  )
  parser.add_argument(
    "--max-pixels",
    type=_natural,
    default=images.MAX_PIXELS,
    metavar="N",
    help="refuse larger images, and those that claim far more than their bytes"
    " make believable (default: %(default)s)",
  )
  parser.add_argument(
    "-q", "--quiet", action="store_true", help="print errors only"
  )


def run(args: argparse.Namespace) -> int:
  """Upscales all inputs; returns the exit status."""
  out = console.make_console()
  err = console.make_console(stderr=True)
  say = (lambda *_: None) if args.quiet else out.print
  failures = 0

  def fail(message: object) -> None:
    nonlocal failures
    failures += 1
    err.print(f"error: {message}")

  sources = _collect(args.inputs, fail)
  if not sources:
    return 1
  folder, file = _output(args.output, len(sources))
  if file:
    storage.check_output(
      file,
      overwrite=args.overwrite or args.skip_existing,
      inputs=storage.file_ids(sources),
    )
  compilation.enable_compilation_cache(storage.cache_dir() / "xla")
  with console.fetch_progress(args.model, quiet=args.quiet) as progress:
    model = upscaler.load(
      args.model,
      scale=args.model_scale,
      config=find.read_config(args.config),
      dtype=args.precision,
      progress=progress,
    )
  for note in model.notes:
    say(f"note: {note}")
  scale = args.scale or model.scale

  targets = {}
  for source in sources:
    suffix = f".{args.format}" if args.format else source.suffix
    if suffix.lower() not in images.OUTPUT_SUFFIXES:
      suffix = ".png"
    if folder:
      targets[source] = folder / f"{source.stem}{suffix}"
    else:
      beside = source.with_name(f"{source.stem}_x{scale:g}{suffix}")
      targets[source] = file or beside
  jobs = _plan(targets, args, fail, say)
  if not jobs:
    return int(failures > 0)
  settings = files.Settings(
    size=ResultSize(scale=args.scale),
    tile=args.tile,
    exact=args.exact,
    halo=args.halo,
    quality=args.quality,
    max_pixels=args.max_pixels,
    overwrite=args.overwrite,
  )
  started = time.perf_counter()
  done = pixels = 0
  with _Progress(jobs, err, disable=args.quiet) as bar:
    outcomes = files.upscale_files(model, jobs, settings, progress=bar.tiles)
    for job, outcome in outcomes:
      name = printable(job.source)
      if isinstance(outcome, files.Done):
        width, height = outcome.width, outcome.height
        done += 1
        pixels += width * height
        for note in outcome.notes:
          say(f"{name}: {note}")
        say(f"{job.target}  {width} x {height}, {outcome.seconds:.1f} s")
      elif os.environ.get("ESRGAN_JAX_TRACEBACK"):
        raise outcome
      else:
        reason = explain(outcome)
        fail(reason if name in reason else f"{name}: {reason}")
      bar.finish(job)
  seconds = time.perf_counter() - started
  device = jax.local_devices()[0].device_kind
  count = f"{done} image{'' if done == 1 else 's'}"
  say(
    f"{count}, {pixels / 1e6:.1f} megapixels in {seconds:.1f} s with"
    f" {model.name} on {device}" + (f"; {failures} failed" if failures else "")
  )
  return int(failures > 0)


def _scale(text: str) -> float:
  value = float(text)
  if not 0.01 <= value <= 64:
    raise argparse.ArgumentTypeError(f"{text} is not between 0.01 and 64")
  return value


def _quality(text: str) -> int:
  value = int(text)
  if not 1 <= value <= 100:
    raise argparse.ArgumentTypeError(f"{text} is not between 1 and 100")
  return value


def _tile(text: str) -> int | str:
  return text if text == "auto" else _natural(text)


def _natural(text: str) -> int:
  value = int(text)
  if value < 0:
    raise argparse.ArgumentTypeError(f"{text} is negative")
  return value


def _collect(
  inputs: Sequence[str], fail: Callable[[object], None]
) -> list[pathlib.Path]:
  """Returns the files that the inputs stand for, each once, in order."""
  found: dict[pathlib.Path, None] = {}
  for text in inputs:
    try:
      inside = _meant(text)
    except (OSError, ValueError) as error:
      fail(explain(error))
    else:
      found.update(dict.fromkeys(inside))
  return list(found)


def _meant(text: str) -> list[pathlib.Path]:
  """Returns the files that one input stands for, at least one."""
  path = pathlib.Path(text)
  if path.is_dir():
    inside = sorted(p for p in path.iterdir() if images.is_image_suffix(p))
    found = [p for p in inside if p.is_file()]
    if not found:
      raise ValueError(f"{text}: no image in this folder")
    return found
  if path.is_file():
    return [path]
  if not path.exists() and glob.has_magic(text):
    paths = map(pathlib.Path, sorted(glob.glob(text, recursive=True)))
    if found := [p for p in paths if p.is_file()]:
      return found
    raise ValueError(f"{text}: nothing matches")
  raise ValueError(f"{text}: no such file")


def _output(
  output: str | None, count: int
) -> tuple[pathlib.Path | None, pathlib.Path | None]:
  """Returns the folder or the file that results go to; neither: beside."""
  if not output:
    return None, None
  path, suffixes = pathlib.Path(output), images.OUTPUT_SUFFIXES
  if path.is_dir() or output.endswith(("/", os.sep)) or not path.suffix:
    if os.path.lexists(path) and not path.is_dir():
      raise ValueError(f"{path} is not a folder; choose another name")
    return path, None
  if path.suffix.lower() not in suffixes:
    if count > 1:
      return path, None
    raise ValueError(
      f"{path}: cannot write {path.suffix} files; choose one of"
      f" {', '.join(suffixes)}"
    )
  if count > 1:
    raise ValueError(
      f"{path}: {count} images cannot go to one file; give a folder"
    )
  return None, path


def _plan(
  targets: Mapping[pathlib.Path, pathlib.Path],
  args: argparse.Namespace,
  fail: Callable[[object], None],
  say: Callable[[str], None],
) -> list[files.Job]:
  """Returns what to do, and refuses what would lose something."""
  jobs: dict[pathlib.Path, files.Job] = {}
  inputs = storage.file_ids([*targets, args.model])
  for source, target in targets.items():
    if target in jobs:
      fail(
        f"{source}: its result {target} is that of {jobs[target].source} as"
        " well"
      )
      continue
    try:
      if args.skip_existing and target.is_file():
        say(f"{target}  exists, skipped")
        continue
      storage.check_output(
        target, overwrite=args.overwrite, inputs=inputs, make_folder=True
      )
    except OSError as error:
      fail(f"{source}: {explain(error)}")
    else:
      jobs[target] = files.Job(source, target, images.read_size(source))
  return list(jobs.values())


class _Progress:
  """One bar over all images, weighted by their pixels, with the time left."""

  def __init__(
    self,
    jobs: Sequence[files.Job],
    err: rich.console.Console,
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
    )
    self._shown = err.is_terminal and not disable
    self._index = {job: i for i, job in enumerate(jobs)}
    self._total = sum(job.pixels for job in jobs)
    self._done = 0

  def __enter__(self) -> _Progress:
    self._task = self._bar.add_task("compiling", total=self._total or None)
    if self._shown:
      self._bar.start()
    return self

  def __exit__(self, *_: object) -> None:
    if self._shown:
      self._bar.stop()

  def tiles(self, job: files.Job, done: int, total: int) -> None:
    """Shows how many tiles of an image are done."""
    count = len(self._index)
    images_done = f"{self._index[job] + 1}/{count} " if count > 1 else ""
    self._bar.update(
      self._task,
      completed=self._done + job.pixels * done // total,
      description=f"{images_done}{job.source.name} tile {done}/{total}",
    )

  def finish(self, job: files.Job) -> None:
    """Counts an image as done, whatever became of it."""
    self._done += job.pixels
    self._bar.update(self._task, completed=self._done)
