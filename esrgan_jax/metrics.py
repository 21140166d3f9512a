"""PSNR and SSIM by the protocols of super-resolution papers.

Images are float `[..., H, W, C]` in [0, 1], RGB where there are three channels;
one value is returned per image, in float32, or float64 for float64 images (with
`JAX_ENABLE_X64`). Nothing is clipped or rounded here:
published numbers measure 8-bit images, so round `sr` to 255 levels first to
compare with them. `crop_border` and `y_channel` have no default, since papers
differ.
"""

import numbers

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from esrgan_jax import checks
from esrgan_jax.ops import axes
from esrgan_jax.ops.precision import at_least_float32

_SSIM_WINDOW = 11  # Wang et al. 2004, section III-C, with K1 and K2.
_SSIM_SIGMA = 1.5
_SSIM_C1 = 0.01**2  # (K1 L)^2 for a range L = 1.
_SSIM_C2 = 0.03**2


def rgb_to_y(image: Array) -> Array:
  """Returns the BT.601 luma of RGB images, in studio range.

  Not rounded: MATLAB's `rgb2ycbcr` rounds for uint8 input, not for doubles.

  Args:
    image: Images, float `[..., H, W, 3]`, RGB in [0, 1].

  Returns:
    Luma `[..., H, W, 1]`, from 16/255 (black) to 235/255 (white), in float32,
    or float64 for float64 images.

  Raises:
    TypeError: If `image` is no float array.
    ValueError: If it is not `[..., H, W, 3]`, or has no pixel.

  Source: MATLAB `rgb2ycbcr`; BasicSR `utils/color_util.py::rgb2ycbcr`.

  >>> luma = rgb_to_y(jnp.array([[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]]))
  >>> [round(float(v) * 255, 2) for v in luma.ravel()]
  [16.0, 235.0]
  """
  image = checks.check_images(image, channels=3)
  return axes.anywhere(_luma, image)


def psnr(sr: Array, hr: Array, *, crop_border: int, y_channel: bool) -> Array:
  """Returns the peak signal-to-noise ratio of each image, in decibels.

  There is no default protocol on purpose: papers differ, and so do numbers.

  Args:
    sr: Super-resolved images, float `[..., H, W, C]` in [0, 1]; not clipped.
    hr: Ground truth, same shape and range as `sr`.
    crop_border: HR pixels removed from each side before measuring, >= 0;
      papers remove `scale` pixels.
    y_channel: Measure on BT.601 luma (16..235 of 255) of RGB images, instead
      of all channels. Of grey images it is the grey in that range, as if all
      three channels were there. Both options are static: under `jax.jit`, bind
      them with `functools.partial`, or name them in `static_argnames=`.

  Returns:
    `[...]` array, one value per image; `inf` where the images are equal.

  Raises:
    TypeError: If the images are no float arrays, or an option is traced or of
      another kind.
    ValueError: If the shapes differ, `crop_border` leaves no pixels, or luma
      is asked for of images that are neither RGB nor grey.

  Source: BasicSR `metrics/psnr_ssim.py::calculate_psnr` (255 range, float64);
  its torch twin adds 1e-8 to the MSE and so never exceeds 80 dB.

  >>> hr = jnp.zeros((2, 8, 8, 3))
  >>> run = jax.jit(psnr, static_argnames=("crop_border", "y_channel"))
  >>> values = run(hr + 0.5, hr, crop_border=2, y_channel=False)
  >>> [round(float(v), 2) for v in values]
  [6.02, 6.02]
  """
  sr, hr = _check(sr, hr, crop_border, y_channel, smallest=1)

  def measure(sr, hr):
    sr, hr = _prepare(sr, hr, crop_border, y_channel)
    return -10.0 * jnp.log10(_mean(jnp.square(sr - hr)))

  return axes.anywhere(measure, sr, hr, kept=sr.ndim - 3)


def ssim(sr: Array, hr: Array, *, crop_border: int, y_channel: bool) -> Array:
  """Returns the structural similarity of each image, in [-1, 1].

  Wang's: an 11x11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, the mean
  over windows that lie inside the image; on RGB, the mean of the channels.
  Local variances come from the law of total variance, window row by window
  row, never from E[x^2] - E[x]^2: in flat regions that difference would lose
  the digits that decide the result in float32.

  Args:
    sr: Super-resolved images, float `[..., H, W, C]` in [0, 1]; not clipped.
    hr: Ground truth, same shape and range as `sr`.
    crop_border: HR pixels removed from each side before measuring, >= 0;
      papers remove `scale` pixels.
    y_channel: Measure on BT.601 luma (16..235 of 255) of RGB images, instead
      of all channels. Of grey images it is the grey in that range, as if all
      three channels were there. Both options are static: under `jax.jit`, bind
      them with `functools.partial`, or name them in `static_argnames=`.

  Returns:
    `[...]` array, one value per image; 1 where the images are equal.

  Raises:
    TypeError: If the images are no float arrays, or an option is traced or of
      another kind.
    ValueError: If the shapes differ, fewer than 11x11 pixels are left, or luma
      is asked for of images that are neither RGB nor grey.

  Source: Wang et al. 2004, `ssim_index.m` (without its later downsampling);
  BasicSR `metrics/psnr_ssim.py::calculate_ssim`.

  >>> hr = jnp.linspace(0.0, 1.0, 16 * 16 * 3).reshape(16, 16, 3)
  >>> round(float(ssim(hr, hr, crop_border=2, y_channel=True)), 4)
  1.0
  >>> round(float(ssim(1.0 - hr, hr, crop_border=2, y_channel=True)), 4) < 0.9
  True
  """
  sr, hr = _check(sr, hr, crop_border, y_channel, smallest=_SSIM_WINDOW)

  def measure(sr, hr):
    sr, hr = _prepare(sr, hr, crop_border, y_channel)
    # Next to 1 float32 has few digits: sum what is missing from it.
    return 1 - _mean(1 - _ssim_map(sr, hr))

  return axes.anywhere(measure, sr, hr, kept=sr.ndim - 3)


def ssim_map(sr: Array, hr: Array) -> Array:
  """Returns the structural similarity of every 11x11 window, per channel.

  What `ssim` averages; for those who weigh or cut it themselves.

  Args:
    sr: Super-resolved images, float `[..., H, W, C]` in [0, 1], H, W >= 11.
    hr: Ground truth, same shape and range as `sr`.

  Returns:
    `[..., H - 10, W - 10, C]`, at the place of each window's first pixel.

  Raises:
    TypeError: If the images are no float arrays.
    ValueError: If the shapes differ, or no window fits.

  Source: as `ssim`.

  >>> hr = jnp.linspace(0.0, 1.0, 16 * 12).reshape(16, 12, 1)
  >>> ssim_map(hr, hr).shape
  (6, 2, 1)
  """
  sr, hr = _check(sr, hr, 0, False, smallest=_SSIM_WINDOW)
  return axes.anywhere(lambda *pair: _ssim_map(*_prepare(*pair)), sr, hr)


def _ssim_map(sr, hr):
  """The same of a pair that has been prepared."""
  # [..., C, H, W]: shifts along the last axes are what vector units like.
  sr, hr = jnp.moveaxis(sr, -1, -3), jnp.moveaxis(hr, -1, -3)
  mean_s, mean_h, variance, covariance = _window_moments(sr, hr)
  luminance = (2 * mean_s * mean_h + _SSIM_C1) / (
    jnp.square(mean_s) + jnp.square(mean_h) + _SSIM_C1
  )
  structure = (2 * covariance + _SSIM_C2) / (variance + _SSIM_C2)
  return jnp.moveaxis(luminance * structure, -3, -1)


def _check(sr, hr, crop_border, y_channel, *, smallest):
  """The pair as arrays; raises unless it can be measured."""
  checks.check_static(crop_border=crop_border, y_channel=y_channel)
  checks.check_flags(y_channel=y_channel)
  sr, hr = checks.check_images(sr, "sr"), checks.check_images(hr, "hr")
  checks.check_pair(sr, hr)
  if y_channel and sr.shape[-1] != 1:
    checks.check_images(sr, "sr", channels=3)
  if not isinstance(crop_border, numbers.Integral):
    raise TypeError(f"crop_border must be a whole number, got {crop_border!r}")
  if crop_border < 0:
    raise ValueError(f"crop_border must be >= 0, got {crop_border}")
  height, width = (n - 2 * crop_border for n in sr.shape[-3:-1])
  # One by one: sizes may be symbolic, which have no order of their own.
  if height < smallest or width < smallest:
    raise ValueError(
      f"crop_border={crop_border} leaves {max(height, 0)}x{max(width, 0)} of "
      f"{sr.shape[-3]}x{sr.shape[-2]} pixels; at least {smallest}x{smallest} "
      "are needed"
    )
  return sr, hr


def _prepare(sr, hr, crop_border=0, y_channel=False):
  """Crops a pair, and takes it to float32 or its luma."""
  height, width = (n - 2 * crop_border for n in sr.shape[-3:-1])
  rows = slice(crop_border, crop_border + height)
  columns = slice(crop_border, crop_border + width)
  sr, hr = sr[..., rows, columns, :], hr[..., rows, columns, :]
  dtype = at_least_float32(sr.dtype, hr.dtype)
  sr, hr = sr.astype(dtype), hr.astype(dtype)
  return (_luma(sr), _luma(hr)) if y_channel else (sr, hr)


def _luma(image):
  """Luma of RGB, or of a grey image as if it were RGB; see `rgb_to_y`."""
  image = image.astype(at_least_float32(image.dtype))
  places = (0, 0, 0) if image.shape[-1] == 1 else (0, 1, 2)
  red, green, blue = (image[..., i : i + 1] for i in places)
  # Written out: a matrix product would run in bfloat16 on a TPU.
  return (65.481 * red + 128.553 * green + 24.966 * blue + 16.0) / 255.0


def _mean(values):
  """Mean over the last three axes in two steps: long float32 sums drift."""
  return jnp.mean(jnp.mean(values, axis=-2), axis=(-2, -1))


@jax.jit
def _window_moments(sr, hr):
  """Local means, summed variance and covariance over the SSIM window."""
  offsets = np.arange(_SSIM_WINDOW) - _SSIM_WINDOW // 2
  weights = np.exp(-(offsets**2) / (2 * _SSIM_SIGMA**2))
  weights = [float(w) for w in weights / weights.sum()]

  def shifted(x, axis):
    """The 11 views of `x` that line up the taps of one axis."""
    length = x.shape[axis] - _SSIM_WINDOW + 1
    index = [slice(None)] * x.ndim
    views = []
    for start in range(_SSIM_WINDOW):
      index[axis] = slice(start, start + length)
      views.append(x[tuple(index)])
    return views

  def average(views):
    return sum(w * v for w, v in zip(weights, views, strict=True))

  # Total variance = mean of the variances + variance of the means, per axis.
  mean_s, mean_h = sr, hr
  variance = covariance = None
  for axis in (-1, -2):
    views_s, views_h = shifted(mean_s, axis), shifted(mean_h, axis)
    # Held back from fusion, which would compute each mean 11 times over.
    mean_s, mean_h = jax.lax.optimization_barrier(
      (average(views_s), average(views_h))
    )
    deviations = [
      (s - mean_s, h - mean_h) for s, h in zip(views_s, views_h, strict=True)
    ]
    between = average([jnp.square(s) + jnp.square(h) for s, h in deviations])
    joint = average([s * h for s, h in deviations])
    if variance is None:
      variance, covariance = between, joint
    else:
      variance = average(shifted(variance, axis)) + between
      covariance = average(shifted(covariance, axis)) + joint
  return mean_s, mean_h, variance, covariance
