"""The order in which an image is degraded, and what is drawn for it."""

from __future__ import annotations

import dataclasses
import functools
import numbers

import jax
import jax.numpy as jnp
from jax import Array, lax

from esrgan_jax import checks
from esrgan_jax.degradation import (
  blurring,
  draws,
  jpeg,
  kernels,
  noise,
  resizing,
)
from esrgan_jax.degradation.settings import Degradation
from esrgan_jax.ops import axes
from esrgan_jax.ops import keys as keys_lib
from esrgan_jax.ops.platforms import by_platform

# On a CPU, an image that is resized to no more than one of these at first is
# computed in an array of that size, and not of the largest: most are.
_FACTORS = (0.5, 1.0)
_SMALL = 128 * 128  # Pixels of images that aren't worth three programs.
_EDGE = 16  # Arrays' sides are multiples of JPEG's units.


def degrade(keys: Array, hr: Array, settings: Degradation, scale: int) -> Array:
  """Returns LR images of HR ones: blur, size, noise and JPEG, twice.

  What is drawn for an image depends on its key and nothing else: each image of
  a batch has sizes, kernels and qualities of its own. On a CPU one follows the
  other, and computes what it has drawn alone; elsewhere all go together, and
  what was not drawn is computed and left. So a CPU's noise is another than that
  of a GPU or TPU.

  Safe under `jit`, `vmap` and `shard_map`; `settings` and `scale` are static.
  There is no gradient worth having.

  Args:
    keys: PRNG keys, typed, of any implementation: `[B]`, an image's own.
    hr: Images, float `[B, H, W, 3]` in [0, 1], both sides multiples of `scale`.
    settings: What is drawn from.
    scale: HR pixels per LR pixel.

  Returns:
    Images, float `[B, H / scale, W / scale, 3]` in [0, 1], of 256 levels.

  Raises:
    TypeError: If `keys` are no typed keys, `hr` is no float array, or
      `settings` no `Degradation`.
    ValueError: If there are not as many keys as images, `scale` is no whole
      number, or sides aren't multiples of it.

  Source: Real-ESRGAN (arXiv:2107.10833), section 3; BasicSR
  `models/realesrgan_model.py::feed_data`.

  >>> hr = jnp.full((2, 32, 32, 3), 0.5)
  >>> keys = jax.random.split(jax.random.key(0), 2)
  >>> lr = jax.jit(degrade, static_argnums=(2, 3))(keys, hr, Degradation(), 4)
  >>> lr.shape, bool((lr[0] == lr[1]).all())
  ((2, 8, 8, 3), False)
  """
  hr = _check(keys, hr, settings, scale)
  draw = functools.partial(
    _degrade_all, settings=settings, scale=int(scale), sides=hr.shape[1:3]
  )
  return axes.anywhere(draw, hr, keys, kept=1)


def _check(keys, hr, settings, scale):
  hr = checks.check_images(hr, "hr", channels=3, batch=True)
  dtype = getattr(keys, "dtype", None)
  if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
    raise TypeError(
      f"keys must be random keys [B], got {checks.describe(keys)}: make them,"
      " jax.random.split(jax.random.key(0), B)"
    )
  if keys.shape != hr.shape[:1]:
    raise ValueError(
      f"keys must be as many as images, {hr.shape[0]}, got {keys.shape}"
    )
  if not isinstance(settings, Degradation):
    raise TypeError(
      f"settings must be a Degradation, got {checks.describe(settings)}"
    )
  whole = isinstance(scale, numbers.Integral) and not isinstance(scale, bool)
  if not whole or scale < 1:
    raise ValueError(f"scale must be a whole number above 0, got {scale!r}")
  height, width = hr.shape[1:3]
  if height % scale or width % scale:
    raise ValueError(
      f"hr is {height}x{width}; sides must be multiples of the scale, {scale}"
    )
  return hr


def _degrade_all(hr, keys, *, settings, scale, sides):
  dtype = hr.dtype
  hr = jnp.moveaxis(hr.astype(jnp.float32), -1, 1)
  keys = jax.vmap(keys_lib.as_threefry)(keys)
  run = functools.partial(_degrade, settings=settings, scale=scale, sides=sides)
  most = settings.resize_range[1] if settings.resize_prob[0] else 1.0

  def together(keys, hr):
    return jax.vmap(functools.partial(run, arrays=(most,)))(keys, hr)

  def in_turn(keys, hr):
    small = sides[0] * sides[1] <= _SMALL
    less = () if small else (each for each in _FACTORS if each < most)
    one = functools.partial(run, arrays=(*less, most))
    return lax.map(lambda image: one(*image), (keys, hr))

  lr = by_platform(keys, hr, cpu=in_turn, default=together)
  return jnp.moveaxis(lr, 1, -1).astype(dtype)


@dataclasses.dataclass(frozen=True)
class _Image:
  """An image at the upper left of an array that doesn't change its size."""

  planes: Array
  height: Array
  width: Array


jax.tree_util.register_dataclass(
  _Image, data_fields=["planes", "height", "width"], meta_fields=[]
)


def _degrade(key, hr, *, settings, scale, sides, arrays):
  """One image, `[3, H, W]`; at first size, an array so many times as large."""
  lr_sides = tuple(n // scale for n in sides)
  key, *noises = jax.random.split(key, 3)
  first, second, last = draws.draw(key, 3)
  factor = _factor(first, settings.resize_prob, settings.resize_range)
  # A size that the image cannot be smaller than: one pixel.
  sizes = tuple(
    jnp.maximum(jnp.floor(n * factor), 1).astype(jnp.int32) for n in sides
  )
  factor2 = _factor(second, settings.resize_prob2, settings.resize_range2)
  sizes2 = tuple(
    jnp.maximum(jnp.floor(n * factor2), 1).astype(jnp.int32) for n in lr_sides
  )
  kernel = _draw_kernel(first, settings, "")
  blurred = blurring.blur(hr, kernel)
  lengths2 = _lengths(
    lr_sides, settings.resize_range2[1] if settings.resize_prob2[0] else 1.0
  )

  def middle(lengths):
    """What happens at the first size, up to the second."""

    def run(blurred):
      image = _resize(_whole(blurred), first, sizes, lengths, 1 / factor)
      image = _add_noise(image, first, noises[0], settings, "")
      image = _compress(image, first, settings.jpeg_range)
      image = lax.cond(
        draws.happens(second["blur"], settings.second_blur_prob),
        functools.partial(_blur, kernel=_draw_kernel(second, settings, "2")),
        lambda image: image,
        image,
      )
      return _resize(image, second, sizes2, lengths2)

    return run

  lengths = [_lengths(sides, each) for each in arrays]
  fits = jnp.stack(
    [(sizes[0] <= height) & (sizes[1] <= width) for height, width in lengths]
  )
  # The first that is large enough; of one, there is nothing to choose.
  image = lax.switch(
    jnp.argmax(fits), [middle(each) for each in lengths], blurred
  )
  image = _add_noise(image, second, noises[1], settings, "2")
  planes = _finish(image, last, settings, lr_sides)
  return jnp.round(jnp.clip(planes, 0, 1) * 255) / 255


def _finish(image, numbers, settings, sides):
  """The size of LR and the last sinc filter, before JPEG or after it."""
  jpeg_first = draws.happens(numbers["jpeg first"], 0.5)
  image = lax.cond(
    jpeg_first,
    lambda image: _compress(image, numbers, settings.jpeg_range2),
    lambda image: image,
    image,
  )
  sizes = tuple(jnp.asarray(n, jnp.int32) for n in sides)
  image = _resize(image, numbers, sizes, sides)
  kernel = kernels.draw_final_kernel(
    numbers,
    within=settings.blur_kernel_size2,
    sinc_prob=settings.final_sinc_prob,
  )
  image = _whole(blurring.blur(image.planes, kernel))
  image = lax.cond(
    jpeg_first,
    lambda image: image,
    lambda image: _compress(image, numbers, settings.jpeg_range2),
    image,
  )
  return image.planes


def _lengths(sides, most):
  """Sides of arrays for images up to so many times as large."""
  lengths = (max(int(n * most), 1) for n in sides)
  return tuple(-(-n // _EDGE) * _EDGE for n in lengths)


def _whole(planes):
  _, height, width = planes.shape
  return _Image(planes, jnp.int32(height), jnp.int32(width))


def _factor(numbers, weights, limits):
  """A factor of the size: larger, smaller, or 1."""
  index = draws.chosen(numbers["direction"], weights)
  up = draws.between(numbers["factor"], 1.0, limits[1])
  down = draws.between(numbers["factor"], limits[0], 1.0)
  return jnp.stack([up, down, jnp.ones_like(up)])[index]


def _draw_kernel(numbers, settings, order):
  def option(name):
    return getattr(settings, f"{name}{order}")

  return kernels.draw_kernel(
    numbers,
    within=option("blur_kernel_size"),
    kinds=option("kernel_list"),
    weights=option("kernel_prob"),
    sinc_prob=option("sinc_prob"),
    sigma=option("blur_sigma"),
    betag=option("betag_range"),
    betap=option("betap_range"),
  )


def _blur(image, *, kernel):
  """Blurred, mirrored where the image ends, not the array."""
  margin = kernel.shape[0] // 2
  planes = blurring.mirrored(image.planes, image.height, image.width, margin)
  planes = blurring.blur_inside(planes, kernel)
  return dataclasses.replace(image, planes=planes)


def _resize(image, numbers, sizes, lengths, step=None):
  """Of another size, by area, bilinear or bicubic."""
  mode = draws.chosen(numbers["mode"], (1, 1, 1))
  matrices = [
    resizing.axis_weights(
      mode, old, new, in_length=in_length, out_length=out_length, step=step
    )
    for old, new, in_length, out_length in zip(
      (image.height, image.width),
      sizes,
      image.planes.shape[1:],
      lengths,
      strict=True,
    )
  ]
  return _Image(resizing.resize(image.planes, *matrices), *sizes)


def _add_noise(image, numbers, key, settings, order):
  """Gaussian or Poisson noise, and what leaves [0, 1] is cut off."""

  def option(name):
    return getattr(settings, f"{name}{order}")

  normal = jax.random.normal(key, image.planes.shape, jnp.float32)
  grey = draws.happens(numbers["grey"], option("gray_noise_prob"))

  def gaussian(planes):
    sigma = draws.between(numbers["strength"], *option("noise_range"))
    return noise.gaussian_noise(normal, sigma, grey)

  def poisson(planes):
    factor = draws.between(numbers["strength"], *option("poisson_scale_range"))
    size = (image.height, image.width)
    return noise.poisson_noise(planes, normal, factor, grey, size)

  added = lax.cond(
    draws.happens(numbers["gaussian"], option("gaussian_noise_prob")),
    gaussian,
    poisson,
    image.planes,
  )
  return dataclasses.replace(image, planes=jnp.clip(image.planes + added, 0, 1))


def _compress(image, numbers, limits):
  """As a JPEG file has it."""
  quality = draws.between(numbers["quality"], *limits)
  planes = jpeg.jpeg(image.planes, quality, (image.height, image.width))
  planes = resizing.repeat_edges(planes, image.height, image.width)
  return dataclasses.replace(image, planes=planes)
