"""NIQE: how far an image's statistics are from those of natural photos.

Images are float `[..., H, W, 3]` in [0, 1], RGB. No ground truth is needed.
Parameters come from `esrgan_jax.load_measure`; nothing here reads a file.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from esrgan_jax import checks
from esrgan_jax.ops import axes

__all__ = ["BLOCK", "NUM_FEATURES", "niqe", "niqe_params"]

BLOCK = 96  # Pixels a side, as published.
NUM_FEATURES = 36  # 18 at either of two scales.
_WINDOW, _SIGMA = 7, 7 / 6  # Gaussian, of local means and deviations.
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
_LEAST_SHAPE, _STEP, _NUM_SHAPES = 0.2, 0.001, 9801


def niqe(params: Mapping[str, Array], image: Array) -> Array:
  """Returns NIQE, the distance from natural photos, of each image.

  Luma is rounded to 8 bits, as the model of natural photos was made; so there
  is no useful gradient. Rows and columns beyond the last whole block of 96
  pixels are left out.

  Args:
    params: `{"mean": [2, 36], "whitening": [36, 36]}`, of
      `load_measure("niqe")` or `niqe_params`.
    image: Images, float `[..., H, W, 3]`, RGB in [0, 1], of two blocks of 96x96
      pixels or more.

  Returns:
    `[...]` array, float32; the lower, the more natural: 2 to 6 for photos. NaN
    where fewer than two blocks have any structure.

  Raises:
    TypeError: If `image` is no float array, or `params` no such tree.
    ValueError: If it is too small or has another shape, or `params` have.

  Source: Mittal et al. 2013, "Making a completely blind image quality
  analyzer"; BasicSR `metrics/niqe.py::calculate_niqe`, which agrees with
  MATLAB's: 5.7296 for its `baboon.png`, here as well. How near others come, and
  why not nearer, is in `docs/measures.md`.

  >>> params = niqe_params(np.zeros(36), np.eye(36))
  >>> images = jax.ShapeDtypeStruct((5, 96, 200, 3), jnp.float32)
  >>> jax.eval_shape(niqe, params, images).shape
  (5,)
  """
  image = checks.check_images(image, channels=3)
  height, width = image.shape[-3:-1]
  if height // BLOCK * (width // BLOCK) < 2:
    raise ValueError(
      f"NIQE needs two blocks of {BLOCK}x{BLOCK} pixels, got {height}x{width}:"
      " it compares how blocks vary"
    )
  shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
  expected = {
    "mean": shape((2, NUM_FEATURES)),
    "whitening": shape((NUM_FEATURES, NUM_FEATURES)),
  }
  checks.check_params(params, expected, owner="NIQE")
  return axes.anywhere(_niqe, image, dict(params), kept=image.ndim - 3)


def niqe_params(
  mean: np.ndarray, covariance: np.ndarray
) -> dict[str, np.ndarray]:
  """Returns NIQE's parameters from its model of natural photos.

  Its inverse is taken here, in float64: one scale of features differs from the
  next by orders of magnitude, and float32 has not enough digits.

  Args:
    mean: Of the 36 features of natural photos, `[36]`.
    covariance: Of the same, `[36, 36]`.

  Returns:
    `mean`, in two float32 parts that add up to it, and `whitening`, a matrix
    that takes the covariance to the identity.

  Raises:
    TypeError: If they are no arrays of numbers, or traced.
    ValueError: If shapes differ, or the covariance is none.

  >>> params = niqe_params(np.zeros(36), 4 * np.eye(36))
  >>> params["whitening"][0, :2].tolist()
  [0.5, 0.0]
  """
  checks.check_concrete(
    (mean, covariance),
    "niqe_params",
    "call it outside of jax.jit, and give the program its result",
  )
  try:
    mean, covariance = (np.asarray(x, np.float64) for x in (mean, covariance))
  except (TypeError, ValueError) as error:
    raise TypeError(f"mean and covariance must be arrays: {error}") from error
  if mean.shape != (NUM_FEATURES,) or covariance.shape != (NUM_FEATURES,) * 2:
    raise ValueError(
      f"mean and covariance must be of {NUM_FEATURES} features, got"
      f" {mean.shape} and {covariance.shape}"
    )
  try:
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
  except np.linalg.LinAlgError as error:
    raise ValueError(f"covariance is none: {error}") from error
  high = mean.astype(np.float32)
  return {
    "mean": np.stack([high, (mean - high).astype(np.float32)]),
    "whitening": whitening.astype(np.float32),
  }


@jax.jit
def _niqe(image, params):
  leading = image.shape[:-3]
  rows, columns = (n // BLOCK for n in image.shape[-3:-1])
  image = image[..., : rows * BLOCK, : columns * BLOCK, :]
  image = image.reshape(-1, *image.shape[-3:])
  levels = _luma(image.astype(jnp.float32))
  found = []
  for side in (BLOCK, BLOCK // 2):
    found.append(_features(_normalized(levels), side))
    if side == BLOCK:
      levels = _halved(levels)
  distances = _distance(jnp.concatenate(found, -1), params)
  return distances.reshape(leading)


def _luma(image):
  """Luma in whole levels; where it is halfway, as roundings have it there."""
  high, low = jnp.full_like(image[..., 0], 16), 0
  for channel, weight in enumerate((65.481, 128.553, 24.966)):
    parts = _parts(weight)
    high, low = _add_product(high, low, image[..., channel], parts)
  inverse = _parts(1 / 255)
  total = _add_product(*_add_product(0, 0, high, inverse), low, inverse)
  return jnp.round(_times(sum(total), 255))


def _normalized(x):
  """Levels less their local mean, by their local deviation and 1, `[N, H, W]`.

  Rounded where BasicSR rounds, which sums in float64 and keeps float32: where
  an image is smooth, what is left of a difference of squares is rounding.
  """
  first, second = map(_local_mean, (x, _square(x)))
  variance = jnp.abs(second - _square(first))
  return (x - first) / (jnp.sqrt(variance) + 1)


def _split(x):
  """Float32 as two of 12 bits, whose products are exact.

  However a compiler joins such products with sums, nothing changes (Dekker
  1971); others it would keep in more digits here and there.
  """
  bits = lax.bitcast_convert_type(x, jnp.int32) & ~0xFFF
  high = lax.bitcast_convert_type(bits, x.dtype)
  return high, x - high


def _square(x):
  """Squares, rounded once."""
  high, low = _split(x)
  return high * high + (2 * high * low + low * low)


def _times(x, number):
  """Products with a number, rounded once."""
  return sum(_add_product(0, 0, x, _parts(number)))


def _local_mean(x):
  """Gaussian-weighted means around each pixel, rounded once."""
  reach = _WINDOW // 2
  weights = np.exp(-np.square(np.arange(-reach, reach + 1)) / (2 * _SIGMA**2))
  weights = np.outer(weights, weights).reshape(-1)
  parts = jnp.asarray(_parts(weights / weights.sum()))
  padded = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach)), mode="edge")

  def add(tap, total):
    place = (0, tap // _WINDOW, tap % _WINDOW)
    here = lax.dynamic_slice(padded, place, x.shape)
    return _add_product(*total, here, parts[tap])

  zero = jnp.zeros_like(x)
  return sum(lax.fori_loop(0, len(weights), add, (zero, zero)))


def _halved(x):
  """Half the size: MATLAB's bicubic, of floats in [0, 1], rounded per axis."""
  x = _times(x, 1 / 255)
  parts = _parts(np.array([-3, -9, 29, 111, 111, 29, -9, -3]) / 256)
  for axis in (1, 2):
    pads = [(0, 0)] * 3
    pads[axis] = (3, 3)
    x = jnp.pad(x, pads, mode="symmetric")
    count = (x.shape[axis] - 6) // 2
    total = (0, 0)
    for tap, part in enumerate(parts):
      here = lax.slice_in_dim(x, tap, tap + 2 * count - 1, 2, axis)
      total = _add_product(*total, here, part)
    x = sum(total)
  return _times(x, 255)


def _parts(weights):
  """Numbers as three float32 of 12 bits each, which add up to them."""
  parts, rest = [], np.asarray(weights, np.float64)
  for _ in range(3):
    fraction, exponent = np.frexp(rest)
    parts.append(np.ldexp(np.round(np.ldexp(fraction, 12)), exponent - 12))
    rest = rest - parts[-1]
  return np.stack(parts, -1).astype(np.float32)


def _add_product(high, low, x, parts):
  """Adds `x` times a number to a sum in two float32 parts, nearly exactly.

  What a sum loses is known (Knuth's).
  """
  x_high, x_low = _split(x)
  product = x_high * parts[0]
  total = high + product
  taken = total - high
  lost = (high - (total - taken)) + (product - taken)
  low = low + (
    lost
    + (x_low * parts[0] + x_high * parts[1])
    + (x_low * parts[1] + x_high * parts[2])
  )
  return total, low


def _features(x, side):
  """The 18 features of each block, `[N, blocks, 18]`."""
  count, height, width = x.shape
  x = x.reshape(count, height // side, side, width // side, side)
  x = x.swapaxes(2, 3).reshape(count, -1, side, side)
  shape, left, right, _ = _fit(x)
  found = [shape, (left + right) / 2]
  for shift in _NEIGHBOURS:
    shape, left, right, skew = _fit(x * jnp.roll(x, shift, (-2, -1)))
    found += [shape, (right - left) * skew, left, right]
  return jnp.stack(found, -1)


def _fit(x):
  """Fits an asymmetric generalised Gaussian to each block, by its moments.

  NaN is what has no moments: a flat block's.
  """
  squares = jnp.square(x)

  def mean(values, chosen=None):
    total = values.sum(-1).sum(-1)
    if chosen is None:
      return total / (x.shape[-2] * x.shape[-1])
    return total / chosen.sum((-2, -1)).astype(x.dtype)

  left, right = (
    jnp.sqrt(mean(jnp.where(chosen, squares, 0), chosen))
    for chosen in (x < 0, x > 0)
  )
  ratio = left / right
  moment = jnp.square(mean(jnp.abs(x))) / mean(squares)
  moment *= (ratio**3 + 1) * (ratio + 1) / jnp.square(jnp.square(ratio) + 1)
  between, *tables = _tables()
  index = jnp.searchsorted(between, moment)
  # As the published code's search, which ends at once where there is none.
  index = jnp.where(jnp.isnan(moment), 0, index)
  shape, spread, skew = (jnp.asarray(table)[index] for table in tables)
  return shape, left * spread, right * spread, skew


@functools.cache
def _tables():
  """By steps of shape: where one begins, it, deviation to scale, and skew."""
  shapes = _LEAST_SHAPE + _STEP * np.arange(_NUM_SHAPES)
  first, second, third = (
    np.array([math.gamma(k / shape) for shape in shapes]) for k in (1, 2, 3)
  )
  moments = np.square(second) / (first * third)
  between = (moments[1:] + moments[:-1]) / 2
  tables = between, shapes, np.sqrt(first / third), second / first
  return tuple(table.astype(np.float32) for table in tables)


def _distance(features, params):
  """The distance of Gaussians over blocks from that of natural photos."""
  known = ~jnp.isnan(features)
  complete = known.all(-1, keepdims=True)
  high, low = (x.reshape(1, 1, -1) for x in jnp.asarray(params["mean"]))
  away = jnp.where(known, (features - high) - low, 0)

  def mean(values, chosen):
    total = jnp.where(chosen, values, 0).sum(1, keepdims=True)
    return total / chosen.sum(1, keepdims=True).astype(values.dtype)

  def whiten(values):
    return jnp.einsum(
      "nkf,gf->nkg",
      values,
      jnp.asarray(params["whitening"]),
      precision=lax.Precision.HIGHEST,
    )

  # Where natural photos vary by 1 in every direction, nothing is ill-posed.
  d = whiten(mean(away, known))[:, 0]
  each = whiten(away)
  each = jnp.where(complete, each - mean(each, complete), 0)
  number = complete.sum(1, keepdims=True).astype(each.dtype)
  covariance = jnp.einsum(
    "nkf,nkg->nfg", each, each, precision=lax.Precision.HIGHEST
  ) / (number - 1)
  one = jnp.eye(NUM_FEATURES, dtype=each.dtype)[None]
  covariance = (one + covariance) / 2
  solved = jnp.linalg.solve(covariance, d[..., None])[..., 0]
  return jnp.sqrt((d * solved).sum(-1))
