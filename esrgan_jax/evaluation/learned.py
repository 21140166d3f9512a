"""LPIPS, DISTS and NIQE of evaluated images, whole, by a few programs.

A program is compiled for a size. LPIPS and DISTS pad images to the next of four
sizes an octave, and the networks take what is beyond an image for its border:
values are exactly those of the image at its own size. Of NIQE, whole blocks
count, so that sizes are few.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from esrgan_jax import naturalness, perceptual
from esrgan_jax.evaluation.compared import Compared
from esrgan_jax.models import alexnet
from esrgan_jax.weights.perceptual import find_files, load_measure

__all__ = ["distance", "naturalness_of", "padded", "prepare"]

_LEAST_SIDE = 32


@functools.cache
def prepare(name: str) -> None:
  """Looks whether a measure's parameters are here, and fetches them.

  Args:
    name: As of `load_measure`.

  Raises:
    FileNotFoundError: If they are not; one line says how to get them.
    ChecksumError: If a file is not the published one.

  >>> prepare("psnr")
  Traceback (most recent call last):
  ...
  ValueError: no measure 'psnr' has parameters; there are lpips, lpips_v...
  """
  find_files(name)


def distance(name: str) -> Callable[[Compared], float]:
  """Returns what takes LPIPS or DISTS of a result, border and all.

  Args:
    name: `"lpips"`, `"lpips_vgg"` or `"dists"`.
  """
  smallest = alexnet.SMALLEST if name == "lpips" else 16

  def take(compared: Compared) -> float:
    sr, hr = compared.images
    height, width, _ = hr.shape
    if min(height, width) < smallest:
      raise ValueError(
        f"images must have {smallest} pixels a side, got {height}x{width}"
      )
    pair = np.zeros((2, padded(height), padded(width), 3), np.uint8)
    pair[0, :height, :width], pair[1, :height, :width] = sr, hr
    run, params = _program(name)
    return float(run(params, pair, np.array([height, width], np.int32)))

  return take


def naturalness_of(compared: Compared) -> float:
  """Returns NIQE of a result without its border.

  Args:
    compared: Of two blocks of 96x96 pixels or more.
  """
  run, params = _program("niqe")
  block = naturalness.BLOCK
  height, width = (n - n % block or n for n in compared.sr.shape[:2])
  # A program would multiply by an inverse, and halfway levels be others.
  image = compared.sr[:height, :width].astype(np.float32) / 255
  return float(run(params, image))


def padded(side: int) -> int:
  """Returns the side that a program is compiled for.

  Args:
    side: Of an image, in pixels.

  >>> [padded(side) for side in (19, 250, 257, 2040)]
  [32, 256, 320, 2048]
  """
  side = max(side, _LEAST_SIDE)
  step = 2 ** ((side - 1).bit_length() - 3)
  return -(-side // step) * step


@functools.cache
def _program(name: str) -> tuple[Callable[..., jax.Array], Any]:
  """What computes a measure, and its parameters on the device."""
  params = jax.device_put(load_measure(name))
  if name == "niqe":
    return jax.jit(naturalness.niqe), params
  measure = perceptual.dists if name == "dists" else perceptual.lpips

  def run(params, pair, size):
    sr, hr = pair.astype(jnp.float32) / 255
    return measure(params, sr, hr, size=size)

  return jax.jit(run), params
