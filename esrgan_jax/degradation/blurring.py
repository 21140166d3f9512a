"""Images blurred, each by its own kernel of many taps.

Planes are `[C, H, W]`: a TPU pads an image's three channels to 128 where they
come last.

A kernel of 21 x 21 that has no factors is 441 multiplications a pixel. On CPUs
and GPUs, products of spectra take far less. A TPU has no unit for those, but
one for matrix products: there each kernel's row is a banded matrix.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from esrgan_jax.ops.platforms import by_platform

_BLOCK = 128  # Outputs a banded matrix: the side of a TPU's matrix unit.
# Sides whose Fourier transforms are fast have these factors.
_FACTORS = (2, 3, 5, 7)


def blur(planes: Array, kernel: Array) -> Array:
  """Returns planes blurred, their borders mirrored.

  As OpenCV's `filter2D` (and PyTorch's `conv2d`) has it, the kernel isn't
  turned around, and the outermost pixel isn't repeated.

  Args:
    planes: Float `[C, H, W]`.
    kernel: `[K, K]`, K odd.

  Returns:
    `[C, H, W]`.

  Source: BasicSR `utils/img_process_util.py::filter2D`.

  >>> planes = jnp.arange(12.0).reshape(1, 3, 4)
  >>> blurred = blur(planes, jnp.ones((3, 3)) / 9)
  >>> [round(float(each), 2) for each in blurred[0, 1]]
  [4.67, 5.0, 6.0, 6.33]
  """
  margin = kernel.shape[0] // 2
  padding = ((0, 0), (margin, margin), (margin, margin))
  return blur_inside(jnp.pad(planes, padding, mode="reflect"), kernel)


def blur_inside(planes: Array, kernel: Array) -> Array:
  """Returns planes blurred where a whole kernel sees them.

  Args:
    planes: Float `[C, H + K - 1, W + K - 1]`.
    kernel: `[K, K]`, K odd.

  Returns:
    `[C, H, W]`.

  >>> blur_inside(jnp.ones((3, 8, 9)), jnp.ones((3, 3)) / 9).shape
  (3, 6, 7)
  """
  return by_platform(planes, kernel, tpu=blur_by_bands, default=blur_by_spectra)


def blur_by_spectra(planes: Array, kernel: Array) -> Array:
  """`blur_inside` as a product of Fourier transforms.

  >>> blur_by_spectra(jnp.ones((3, 8, 9)), jnp.ones((3, 3)) / 9).shape
  (3, 6, 7)
  """
  height, width = (n - len(kernel) + 1 for n in planes.shape[1:])
  # What wraps around comes out beyond what is kept.
  sides = tuple(map(_fast_side, planes.shape[1:]))
  spectra = jnp.fft.rfft2(planes, sides)
  window = jnp.fft.rfft2(kernel, sides)
  product = spectra * jnp.conj(window)[None]
  return jnp.fft.irfft2(product, sides)[:, :height, :width]


def blur_by_bands(planes: Array, kernel: Array) -> Array:
  """`blur_inside` as matrix products, one a row of the kernel.

  >>> blur_by_bands(jnp.ones((3, 8, 9)), jnp.ones((3, 3)) / 9).shape
  (3, 6, 7)
  """
  side = len(kernel)
  channels, rows, columns = planes.shape
  height, width = rows - side + 1, columns - side + 1
  block = min(_BLOCK, width)
  count = -(-width // block)
  window = block + side - 1
  missing = count * block - width
  planes = jnp.pad(planes, ((0, 0), (0, 0), (0, missing)))
  # [C, H, N, window]: what each block of outputs sees of a row.
  windows = jnp.stack(
    [
      lax.slice_in_dim(planes, i * block, i * block + window, axis=2)
      for i in range(count)
    ],
    axis=2,
  )
  # Output o of a row has tap t at input o + t: a row of weights, repeated with
  # a period one longer than the window, moves on by one each time.
  period = jnp.pad(kernel, ((0, 0), (0, window + 1 - side)))
  bands = jnp.tile(period, (1, block))[:, : block * window]
  bands = bands.reshape(side, block, window)
  blurred = sum(
    jnp.einsum(
      "chnw,ow->chno",
      lax.slice_in_dim(windows, row, row + height, axis=1),
      bands[row],
      precision=lax.Precision.HIGH,
    )
    for row in range(side)
  )
  return blurred.reshape(channels, height, count * block)[..., :width]


def mirrored(planes: Array, height: Array, width: Array, margin: int) -> Array:
  """Returns planes with mirrored margins around an image in their corner.

  Args:
    planes: `[C, H, W]`; the image is at the upper left.
    height: Its rows, traced, from 1 to H.
    width: Its columns.
    margin: Pixels, less than H and W.

  Returns:
    `[C, H + 2 * margin, W + 2 * margin]`, of which the first
    `height + 2 * margin` rows, and columns likewise, are the image and its
    margins.

  >>> planes = jnp.arange(5.0).reshape(1, 1, 5).repeat(3, axis=1)
  >>> mirrored(planes, 3, 4, 2)[0, 0].tolist()
  [2.0, 1.0, 0.0, 1.0, 2.0, 3.0, 2.0, 1.0, 0.0]
  """
  return _mirror(_mirror(planes, 1, height, margin), 2, width, margin)


def _mirror(planes, axis, size, margin):
  """One axis of `mirrored`."""
  length = planes.shape[axis]
  padding = [(0, 0)] * 3
  padding[axis] = (margin, margin)
  planes = jnp.pad(planes, padding, mode="reflect")
  # What lies before the last pixel, turned around, begins after it.
  begin = size - 1
  tail = lax.dynamic_slice_in_dim(planes, begin, margin, axis)
  padding[axis] = (length + margin, length)
  tails = jnp.pad(jnp.flip(tail, axis), padding)
  tails = lax.dynamic_slice_in_dim(
    tails, length - size, length + 2 * margin, axis
  )
  shape = [1] * 3
  shape[axis] = -1
  index = jnp.arange(length + 2 * margin).reshape(shape)
  return jnp.where(index < size + margin, planes, tails)


def _fast_side(side):
  """The next side whose Fourier transform is fast."""
  while True:
    rest = side
    for factor in _FACTORS:
      while rest % factor == 0:
        rest //= factor
    if rest == 1:
      return side
    side += 1
