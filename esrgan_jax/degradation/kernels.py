"""Blur kernels: Gaussians, their generalisations, plateaus and sinc filters.

All are `[K, K]`, sum to 1, and are 0 outside of a square around the middle,
whose side, as everything about them, may be traced. Rows come first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from esrgan_jax.degradation import draws
from esrgan_jax.degradation.settings import KERNELS, SMALLEST_KERNEL

# Sinc filters of sides from here on may cut off lower, as BasicSR has it.
_LARGE_SINC = 13


def gaussian_kernel(
  side: Array,
  sigma_x: Array,
  sigma_y: Array,
  theta: Array,
  *,
  within: int,
  beta: Array = 1.0,
  plateau: Array = False,
) -> Array:
  """Returns a Gaussian kernel, or one of its kin.

  With d2 = u^2 / sigma_x^2 + v^2 / sigma_y^2, u and v the distances to the
  middle along axes turned by `theta`, a pixel is exp(-d2^beta / 2), or
  1 / (1 + d2^beta) of a plateau, over the sum of all.

  Args:
    side: Pixels a side, odd; 0 outside.
    sigma_x: Standard deviation along the first axis, in pixels.
    sigma_y: Along the second; the same for an isotropic kernel.
    theta: Angle from columns towards rows, in radians.
    within: K, odd, `side` or more.
    beta: Shape; a Gaussian at 1.
    plateau: Whether it is a plateau.

  Returns:
    `[K, K]`, float32.

  Source: BasicSR `data/degradations.py`, the `bivariate_*` kernels.

  >>> kernel = gaussian_kernel(3, 1.0, 1.0, 0.0, within=5)
  >>> [round(float(each), 3) for each in kernel[2]]
  [0.0, 0.124, 0.204, 0.124, 0.0]
  """
  x, y, inside = _grid(side, within)
  u = x * jnp.cos(theta) + y * jnp.sin(theta)
  v = y * jnp.cos(theta) - x * jnp.sin(theta)
  power = jnp.square(u / sigma_x) + jnp.square(v / sigma_y)
  # 0 to a power has a log of 0.
  power = jnp.where(power > 0, jnp.exp(beta * jnp.log(power)), 0.0)
  kernel = jnp.where(plateau, 1 / (1 + power), jnp.exp(-0.5 * power))
  return _normalized(kernel, inside)


def sinc_kernel(cutoff: Array, side: Array, *, within: int) -> Array:
  """Returns the ideal low-pass filter of a circle of frequencies, cut off.

  Args:
    cutoff: Radius of the circle, radians a pixel; pi lets all pass that rows
      and columns can carry.
    side: Pixels a side, odd; 0 outside.
    within: K, odd, `side` or more.

  Returns:
    `[K, K]`, float32.

  Source: BasicSR `data/degradations.py::circular_lowpass_kernel`.

  >>> kernel = sinc_kernel(jnp.pi / 2, 7, within=7)
  >>> [round(float(each), 3) for each in kernel[3]]
  [-0.028, 0.043, 0.17, 0.236, 0.17, 0.043, -0.028]
  """
  x, y, inside = _grid(side, within)
  radius = jnp.sqrt(x * x + y * y)
  furthest = math.pi * math.hypot(within // 2, within // 2)
  wave = bessel_j1(cutoff * radius, most=furthest)
  # Its limit in the middle, where both are 0.
  kernel = jnp.where(
    radius > 0,
    wave / jnp.maximum(radius, 1.0),
    cutoff / 2,
  )
  return _normalized(kernel, inside)


def bessel_j1(x: Array, *, most: float) -> Array:
  """Returns the Bessel function of the first kind of order 1.

  Bessel's integral by the midpoint rule, which is exact for a periodic function
  as soon as there are more points than `x` has waves: to 3e-7 in float32.

  Args:
    x: Float, from 0 to `most`.
    most: A static bound.

  Source: DLMF 10.9.2.

  >>> [round(float(bessel_j1(x, most=9.0)), 5) for x in (0.0, 1.0, 9.0)]
  [0.0, 0.44005, 0.24531]
  """
  quarter = math.ceil((1.3 * most + 40) / 4)
  angles = (np.arange(quarter) + 0.5) * (np.pi / 2 / quarter)
  sines = jnp.asarray(np.sin(angles), jnp.float32)
  sines = sines.reshape(-1, *[1] * jnp.ndim(x))
  waves = sines * jnp.sin(jnp.expand_dims(x, 0) * sines)
  return waves.mean(axis=0)


def draw_kernel(
  numbers: Mapping[str, Array],
  *,
  within: int,
  kinds: Sequence[str],
  weights: Sequence[float],
  sinc_prob: float,
  sigma: Sequence[float],
  betag: Sequence[float],
  betap: Sequence[float],
) -> Array:
  """Draws a kernel as BasicSR's dataset does.

  Args:
    numbers: Uniform in [0, 1), by names of `draws.NAMES`.
    within: K, odd; sides are odd, from 7 to it.
    kinds: Names, of `KERNELS`.
    weights: Of these.
    sinc_prob: Probability of a sinc filter instead.
    sigma: Least and most standard deviation, in pixels.
    betag: Least and most shape of generalised Gaussians.
    betap: Least and most shape of plateaus.

  Returns:
    `[K, K]`, float32.

  Source: BasicSR `data/realesrgan_dataset.py`,
  `data/degradations.py::random_mixed_kernels`.

  >>> import jax
  >>> (numbers,) = draws.draw(jax.random.key(0), 1)
  >>> kernel = draw_kernel(
  ...   numbers, within=9, kinds=("iso",), weights=(1.0,),
  ...   sinc_prob=0.0, sigma=(1.0, 2.0), betag=(1, 1), betap=(1, 1))
  >>> kernel.shape, round(float(kernel.sum()), 5)
  ((9, 9), 1.0)
  """
  side = _side(numbers["side"], within)
  kind = draws.chosen(numbers["kind"], weights)

  def is_any(wanted):
    table = [wanted(*KERNELS[name]) for name in kinds]
    return jnp.asarray(table)[kind]

  turned = is_any(lambda turned, _: turned)
  plateau = is_any(lambda _, family: family == "plateau")
  general = is_any(lambda _, family: family == "generalized")
  sigma_x = draws.between(numbers["sigma_x"], *sigma)
  sigma_y = draws.between(numbers["sigma_y"], *sigma)
  theta = draws.between(numbers["theta"], -math.pi, math.pi)
  beta = jnp.where(general, draws.around_one(numbers["betag"], betag), 1.0)
  beta = jnp.where(plateau, draws.around_one(numbers["betap"], betap), beta)
  blur = gaussian_kernel(
    side,
    sigma_x,
    jnp.where(turned, sigma_y, sigma_x),
    jnp.where(turned, theta, 0.0),
    within=within,
    beta=beta,
    plateau=plateau,
  )
  lowest = jnp.where(side < _LARGE_SINC, math.pi / 3, math.pi / 5)
  cutoff = draws.between(numbers["cutoff"], lowest, math.pi)
  sinc = sinc_kernel(cutoff, side, within=within)
  return jnp.where(draws.happens(numbers["sinc"], sinc_prob), sinc, blur)


def draw_final_kernel(
  numbers: Mapping[str, Array], *, within: int, sinc_prob: float
) -> Array:
  """Draws the last sinc filter, or a single pixel, which changes nothing.

  Args:
    numbers: Uniform in [0, 1), by names of `draws.NAMES`.
    within: K, odd; sides are odd, from 7 to it.
    sinc_prob: Probability of a sinc filter.

  Returns:
    `[K, K]`, float32.

  Source: BasicSR `data/realesrgan_dataset.py`.

  >>> import jax
  >>> (numbers,) = draws.draw(jax.random.key(0), 1)
  >>> kernel = draw_final_kernel(numbers, within=7, sinc_prob=0.0)
  >>> float(kernel[3, 3]), int((kernel != 0).sum())
  (1.0, 1)
  """
  cutoff = draws.between(numbers["cutoff"], math.pi / 3, math.pi)
  side = _side(numbers["side"], within)
  sinc = sinc_kernel(cutoff, side, within=within)
  x, y, _ = _grid(within, within)
  pulse = ((x == 0) & (y == 0)).astype(jnp.float32)
  return jnp.where(draws.happens(numbers["sinc"], sinc_prob), sinc, pulse)


def _side(number, within):
  count = (within - SMALLEST_KERNEL) // 2 + 1
  return SMALLEST_KERNEL + 2 * jnp.floor(number * count).astype(jnp.int32)


def _grid(side, within):
  """Columns and rows from the middle, and whether they are of the kernel."""
  steps = jnp.arange(within, dtype=jnp.float32) - within // 2
  y, x = jnp.meshgrid(steps, steps, indexing="ij")
  furthest = jnp.asarray(side // 2, jnp.float32)
  return x, y, jnp.maximum(abs(x), abs(y)) <= furthest


def _normalized(kernel, inside):
  kernel = jnp.where(inside, kernel, 0.0)
  return kernel / kernel.sum()
