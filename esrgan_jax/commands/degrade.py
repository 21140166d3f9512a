"""Draws a page of degraded pictures: each step by itself, then all together.

A row is one thing that is done, from the least to the most of its range: blurs,
sinc filters, sizes, noise, JPEG. The last rows are what a training would see:
LR, its pixels enlarged, of a photo after the other, each column another draw.
Photos are those given, or scikit-image's.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import functools
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from esrgan_jax import console, degradation, storage
from esrgan_jax.data import sources
from esrgan_jax.degradation import blurring, jpeg, kernels, noise, resizing
from esrgan_jax.errors import UsageError
from esrgan_jax.report import samples

_COLUMNS = 6
_NAMES = [field.name for field in dataclasses.fields(degradation.Degradation)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  parser.add_argument(
    "photos",
    nargs="?",
    default="sample_photos",
    help="a folder, a pattern, or what else config.data.sources may be"
    " (default: %(default)s)",
  )
  parser.add_argument(
    "-o",
    "--output",
    type=pathlib.Path,
    default=pathlib.Path("degradation.png"),
    help="the page (default: %(default)s)",
  )
  parser.add_argument(
    "--overwrite", action="store_true", help="replace a page of that name"
  )
  parser.add_argument(
    "--set",
    action="append",
    default=[],
    metavar="NAME=VALUE",
    help="another range or probability, such as noise_range=5,50; may be given"
    " several times",
  )
  parser.add_argument(
    "--scale", type=int, default=4, help="HR pixels per LR pixel (default: 4)"
  )
  parser.add_argument(
    "--size", type=int, default=192, help="HR pixels a side (default: 192)"
  )
  parser.add_argument(
    "--count", type=int, default=3, help="photos (default: %(default)s)"
  )
  parser.add_argument(
    "--seed",
    type=int,
    default=0,
    help="another one draws other values (default: %(default)s)",
  )


def run(args: argparse.Namespace) -> int:
  """Writes the page; returns the exit status."""
  settings = _settings(args.set)
  scale, size = args.scale, args.size
  if min(scale, size, args.count) < 1:
    raise UsageError("--scale, --size and --count must be 1 or more")
  if size % scale:
    raise UsageError(
      f"--size is {size}; it must be a multiple of the scale, {scale}, such as"
      f" {size - size % scale or scale}"
    )
  if args.output.suffix.lower() != ".png":
    raise UsageError(f"-o {args.output}: it is a PNG file; end it in .png")
  storage.check_output(args.output, overwrite=args.overwrite)
  source = sources.open_source(args.photos, scale=scale)
  out = console.make_console(stderr=True)

  def skip(problem):
    out.print(console.lines(f"left out: {problem}"))

  pairs = (pair for _, pair in sources.readable(source, skip))
  crops = samples.choose_crops(pairs, size=size, scale=scale, count=args.count)
  if not crops:
    raise ValueError(
      f"no photo that can be read is {size} pixels a side: choose a smaller"
      " --size, or others"
    )
  photos = np.stack([crop.hr for crop in crops])
  page = _page(photos, settings, scale, args.seed)
  storage.write_whole(args.output, samples.png(page), overwrite=args.overwrite)
  console.make_console().print(console.lines(f"wrote {args.output}"))
  return 0


def _settings(texts: Sequence[str]) -> degradation.Degradation:
  """The defaults, with other values by name."""
  options = {}
  for text in texts:
    name, equals, value = text.partition("=")
    if not equals or name not in _NAMES:
      near = difflib.get_close_matches(name, _NAMES, n=1, cutoff=0)
      problem = f"there is no {name}" if equals else "it is NAME=VALUE"
      near = f"perhaps {near[0]}=... is meant"
      raise UsageError(f"--set {text}: {problem}; {near}")
    try:
      options[name] = ast.literal_eval(value)
    except (ValueError, SyntaxError) as error:
      raise UsageError(
        f"--set {text}: the value is no number, nor several with commas; names"
        " are in quotes"
      ) from error
  try:
    return degradation.Degradation(**options)
  except (TypeError, ValueError) as error:
    raise UsageError(f"--set: {error}") from error


def _page(
  photos: np.ndarray,
  settings: degradation.Degradation,
  scale: int,
  seed: int,
) -> np.ndarray:
  """All rows, one below the other."""
  hr = jnp.asarray(photos, jnp.float32) / 255
  planes = jnp.moveaxis(hr[0], -1, 0)
  rows = [
    *_blurs(planes, settings),
    *_sizes(planes, settings, scale),
    *_noises(planes, settings, jax.random.key(seed)),
    _qualities(planes, settings),
  ]
  grids = [
    samples.grid(
      # Labels of a range that is one number are the same, but for spaces.
      {
        name + " " * index: [_levels(cell)]
        for index, (name, cell) in enumerate(row)
      }
    )
    for row in rows
  ]
  draws = _draws(hr, settings, scale, seed)
  columns = {
    f"drawn {index + 1}": [
      each.repeat(scale, axis=0).repeat(scale, axis=1) for each in column
    ]
    for index, column in enumerate(draws)
  }
  return np.concatenate([*grids, samples.grid(columns)])


def _levels(planes):
  """Planes as uint8 `[H, W, 3]`."""
  levels = np.round(np.clip(np.asarray(planes), 0, 1) * 255)
  return np.moveaxis(levels, 0, -1).astype(np.uint8)


def _steps(limits: Sequence[float], count: int) -> list[float]:
  return np.linspace(*limits, count).tolist()


def _blurs(planes, settings):
  """Every kind of kernel; Gaussians; sinc filters."""
  largest = settings.blur_kernel_size
  most = settings.blur_sigma[1]

  @jax.jit
  def run(planes, side, sigma_x, sigma_y, theta, beta, plateau):
    kernel = kernels.gaussian_kernel(
      side,
      sigma_x,
      sigma_y,
      theta,
      within=largest,
      beta=beta,
      plateau=plateau,
    )
    return blurring.blur(planes, kernel)

  kinds = []
  for name, (turned, family) in degradation.KERNELS.items():
    beta = {
      "gaussian": 1.0,
      "generalized": settings.betag_range[0],
      "plateau": settings.betap_range[1],
    }[family]
    narrow, theta = (most / 3, 0.6) if turned else (most, 0.0)
    shape = (largest, most, narrow, theta, beta, family == "plateau")
    kinds.append((f"{name} {most:g}", run(planes, *shape)))
  sigmas = [
    (
      f"iso, sigma {sigma:.2g}",
      run(planes, largest, sigma, sigma, 0.0, 1.0, False),
    )
    for sigma in _steps(settings.blur_sigma, _COLUMNS)
  ]

  @jax.jit
  def filtered(planes, cutoff):
    kernel = kernels.sinc_kernel(cutoff, largest, within=largest)
    return blurring.blur(planes, kernel)

  sincs = [
    (f"sinc, cut off at {cutoff:.2f}", filtered(planes, cutoff))
    for cutoff in _steps((np.pi / 5, np.pi), _COLUMNS)
  ]
  return kinds, sigmas, sincs


def _sizes(planes, settings, scale):
  """Smaller by each mode, and the size of LR afterwards."""
  sides = planes.shape[1:]
  lr = tuple(n // scale for n in sides)

  @jax.jit
  def run(planes, mode, sizes):
    def weights(old, new, in_length, out_length):
      return resizing.axis_weights(
        mode, old, new, in_length=in_length, out_length=out_length
      )

    small = resizing.resize(planes, *map(weights, sides, sizes, sides, sides))
    back = resizing.resize(small, *map(weights, sizes, lr, sides, lr))
    return back.repeat(scale, axis=1).repeat(scale, axis=2)

  row = []
  least = settings.resize_range[0]
  for factor in (least, (least + 1) / 2):
    sizes = tuple(max(int(n * factor), 1) for n in sides)
    for index, mode in enumerate(resizing.MODES):
      row.append((f"{mode} {factor:.3g}", run(planes, index, sizes)))
  return (row,)


def _noises(planes, settings, key):
  """Gaussian and Poisson, each in colour and grey."""
  normal = jax.random.normal(key, planes.shape, jnp.float32)

  @jax.jit
  def gaussian(planes, sigma, grey):
    return planes + noise.gaussian_noise(normal, sigma, grey)

  @jax.jit
  def poisson(planes, factor, grey):
    size = planes.shape[1:]
    return planes + noise.poisson_noise(planes, normal, factor, grey, size)

  for name, add, limits in (
    ("Gaussian", gaussian, settings.noise_range),
    ("Poisson", poisson, settings.poisson_scale_range),
  ):
    yield [
      (
        f"{name}{', grey' if grey else ''} {level:.3g}",
        add(planes, level, grey),
      )
      for grey in (False, True)
      for level in _steps(limits, _COLUMNS // 2)
    ]


def _qualities(planes, settings):
  run = jax.jit(jpeg.jpeg)
  return [
    (f"JPEG {round(quality)}", run(planes, quality))
    for quality in _steps(settings.jpeg_range, _COLUMNS)
  ]


def _draws(hr, settings, scale, seed):
  """LR of each photo, sharpened before: `[columns][photos]`, uint8."""

  @functools.partial(jax.jit, static_argnums=2)
  def run(key, hr, count):
    keys = jax.random.split(key, count)
    return degradation.degrade(keys, hr, settings, scale)

  # As many pixels as the blur of the sharpening needs.
  radius = min(50, 2 * (min(hr.shape[1:3]) - 1))
  sharp = degradation.usm_sharpen(hr, radius=radius) if radius else hr
  images = jnp.tile(sharp, (_COLUMNS, 1, 1, 1))
  lr = np.asarray(run(jax.random.key(seed), images, len(images)))
  levels = np.round(lr * 255).astype(np.uint8)
  return levels.reshape(_COLUMNS, len(hr), *levels.shape[1:])
