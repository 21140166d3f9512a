"""Validation images whose LR is degraded, the same every time.

Those to train on are degraded inside the step, by `augment.degraded_pairs`.
"""

from __future__ import annotations

import functools
import hashlib
import math
import threading

import jax
import jax.numpy as jnp
import numpy as np

from esrgan_jax import compilation, degradation
from esrgan_jax.data.sources import Pair, Source
from esrgan_jax.ops import keys

__all__ = ["Degraded"]

# Sides are mirrored up to the next of such a sequence: a folder of photos takes
# few programs, and none takes twice the time.
_GROWTH = 1.25
_SMALLEST = 64


class Degraded(Source):
  """The HR images of a source, and LR that is made of them by degradation.

  What is drawn for an image depends on the seed and the image's name alone. LR
  is made when it is first asked for, and then kept: it takes little.

  Args:
    source: Whose HR images they are; its LR is not looked at.
    settings: What the degradation draws from.
    seed: Of the draws.
    gt_usm: Whether LR is made of sharpened HR, as `augment.degraded_pairs` has
      it; HR is as it is.

  >>> from esrgan_jax.data.sources import SamplePhotos
  >>> photos = SamplePhotos("held_out", scale=4)
  >>> source = Degraded(photos, degradation.Degradation())
  >>> source.names, source.lr_size(0)
  (['chelsea.png', 'coffee.png', 'rocket.jpg'], (75, 112))
  """

  def __init__(
    self,
    source: Source,
    settings: degradation.Degradation,
    *,
    seed: int = 0,
    gt_usm: bool = True,
  ):
    self.scale, self.title = source.scale, source.title
    self.lr_origin = f"degraded, seed {seed}"
    self.names, self.problems = source.names, source.problems
    self._source, self._settings = source, settings
    self._seed, self._gt_usm = seed, gt_usm
    self._kept: dict[int, np.ndarray] = {}
    self._lock = threading.Lock()

  def __getitem__(self, index: int) -> Pair:
    hr = self._source[index].hr
    with self._lock:
      if index not in self._kept:
        self._kept[index] = self._make(self.names[index], hr)
    return Pair(self._kept[index], hr)

  def lr_size(self, index: int) -> tuple[int, int]:
    """As `Source.lr_size`; makes no LR."""
    return self._source.lr_size(index)

  def fingerprint(self) -> str:
    """As `Source.fingerprint`: of the source and all that is drawn from."""
    content = (
      f"{self._source.fingerprint()} {self._settings} {self._seed}"
      f" {self._gt_usm}"
    )
    return hashlib.sha256(content.encode()).hexdigest()

  def _make(self, name, hr):
    height, width = (n // self.scale for n in hr.shape[:2])
    sizes = (_rounded(n, self.scale) for n in hr.shape[:2])
    room = [(0, n - now) for n, now in zip(sizes, hr.shape, strict=False)]
    hr = np.pad(hr, (*room, (0, 0)), mode="symmetric")
    # Whatever generator a program has chosen for itself.
    key = keys.named(jax.random.key(self._seed, impl="threefry2x32"), name)
    program = _program(self._settings, self.scale, self._gt_usm)
    return np.asarray(program(key, hr))[:height, :width]


@functools.cache
def _program(settings, scale, gt_usm):
  """`(key, hr) -> lr` of an image, uint8."""

  def run(key, hr):
    hr = hr[None].astype(jnp.float32) / 255
    hr = degradation.usm_sharpen(hr) if gt_usm else hr
    lr = degradation.degrade(key[None], hr, settings, scale)
    return jnp.round(lr[0] * 255).astype(jnp.uint8)

  platform = jax.local_devices()[0].platform
  options = compilation.compiler_options(platform)
  return jax.jit(run, compiler_options=options)


def _rounded(size: int, scale: int) -> int:
  """The next of few sizes, a multiple of the scale."""
  steps = math.ceil(math.log(max(size / _SMALLEST, 1), _GROWTH) - 1e-9)
  found = math.ceil(_SMALLEST * _GROWTH**steps)
  return max(found + -found % scale, size)
